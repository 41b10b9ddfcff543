"""Time the forms of a convolution on CPUs (`fmboost_jax/models/convolution_cpu.py`).

    python -m bench.convolution                         # batch 1 and 2; a few minutes on two cores

The first table runs the same 3×3 kernels and maps through `jax.lax.conv_general_dilated`, im2col and Winograd's
filtering, in float32, alternately. Its numbers are medians, in GFLOP/s of the plain convolution. "Gradient" is with
respect to map and kernel and includes the forward pass. "Chosen" is the form that `convolve` runs on CPUs. The second
table upsamples maps of the UNet and of the decoder (512 channels, 64² and 128²) by nearest neighbours and convolves
them, in two operations and in one. The last line is each form's rounding: root mean square of the difference to float64
over that of the output.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from fmboost_jax.errors import run
from fmboost_jax.models import convolution
from fmboost_jax.models.convolution_cpu import im2col, winograd

# Sides of the map, channels in and out.
SHAPES = (
    (128, 128, 128),
    (64, 256, 256),
    (32, 128, 128),
    (32, 512, 512),
    (16, 256, 256),
    (16, 512, 512),
    (16, 1024, 1024),
    (8, 512, 512),
    (4, 1024, 1024),
)
# Sides of the map before upsampling, channels.
UPSAMPLED = ((8, 512), (16, 256), (16, 1024), (32, 512), (64, 256), (64, 512), (128, 512))
PADDING = ((1, 1), (1, 1))
FORMS = {"convolution": convolution.direct, "im2col": im2col, "Winograd": winograd}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        "bench.convolution", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2], help="batch sizes (default: 1 2)")
    parser.add_argument("--repeats", type=int, default=7, help="runs of each form (default: 7)")
    arguments = parser.parse_args()
    print(f"| map | batch | {' | '.join(FORMS)} | gradient: {' | '.join(FORMS)} | chosen |")
    print("| --- " * (3 + 2 * len(FORMS)) + "|")
    for side, inputs, outputs in SHAPES:
        for batch in arguments.batch:
            random = np.random.default_rng(0)
            x = jnp.asarray(random.standard_normal((batch, side, side, inputs), np.float32))
            kernel = jnp.asarray(0.02 * random.standard_normal((3, 3, inputs, outputs), np.float32))
            gflop = 2e-9 * batch * side**2 * 9 * inputs * outputs
            forward, gradient = measure(list(FORMS.values()), x, kernel, arguments.repeats)
            rates = [gflop / seconds for seconds in forward] + [3 * gflop / seconds for seconds in gradient]
            cells = " | ".join(f"{rate:.0f}" for rate in rates)
            form = convolution.cpu_form(x, kernel, (1, 1), PADDING)
            chosen = next(name for name, function in FORMS.items() if function is form)
            print(f"| {side}², {inputs} → {outputs} | {batch} | {cells} | {chosen} |", flush=True)
    print("\n| map, upsampled | two operations | one | gradient: two operations | one |")
    print("| --- | --- | --- | --- | --- |")
    for side, channels in UPSAMPLED:
        random = np.random.default_rng(0)
        x = jnp.asarray(random.standard_normal((1, side, side, channels), np.float32))
        kernel = jnp.asarray(0.02 * random.standard_normal((3, 3, channels, channels), np.float32))
        forward, gradient = measure([upsample_then_convolve, convolution.upsample_conv], x, kernel, arguments.repeats)
        cells = " | ".join(f"{1e3 * value:.0f} ms" for value in (*forward, *gradient))
        print(f"| {side}² → {2 * side}², {channels} | {cells} |", flush=True)
    print(f"\nRounding, 64², 256 → 256: {', '.join(f'{name} {error:.1e}' for name, error in rounding().items())}")


def upsample_then_convolve(x, kernel, strides, padding):
    """Upsample the map by nearest neighbours, then convolve it."""
    return convolution.convolve(convolution.upsample_nearest(x), kernel, strides, padding)


def rounding() -> dict[str, float]:
    """Each form's error against the same sum in float64."""
    random = np.random.default_rng(0)
    x, kernel = (
        random.standard_normal((1, 64, 64, 256), np.float32),
        random.standard_normal((3, 3, 256, 256), np.float32),
    )
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))).astype(np.float64)
    exact = sum(padded[:, i : i + 64, j : j + 64] @ kernel[i, j].astype(np.float64) for i in range(3) for j in range(3))
    results = {name: form(jnp.asarray(x), jnp.asarray(kernel), (1, 1), PADDING) for name, form in FORMS.items()}
    size = np.sqrt(np.mean(np.square(exact)))
    return {name: np.sqrt(np.mean(np.square(result - exact))) / size for name, result in results.items()}


def measure(forms, x, kernel, repeats: int) -> tuple[list[float], list[float]]:
    """Median seconds of each form's forward pass, and of its gradients."""
    forward = [jax.jit(lambda x, kernel, form=form: form(x, kernel, (1, 1), PADDING)) for form in forms]

    def loss(x, kernel, form):
        return jnp.square(form(x, kernel, (1, 1), PADDING)).sum()

    gradient = [jax.jit(jax.grad(lambda x, k, form=form: loss(x, k, form), argnums=(0, 1))) for form in forms]
    programs = [*forward, *gradient]
    seconds = [[] for _ in programs]
    for number in range(repeats + 1):
        for program, measured in zip(programs, seconds, strict=True):
            started = time.perf_counter()
            jax.block_until_ready(program(x, kernel))
            if number:
                measured.append(time.perf_counter() - started)
    medians = list(map(statistics.median, seconds))
    return medians[: len(forms)], medians[len(forms) :]


if __name__ == "__main__":
    run(main)
