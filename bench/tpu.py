"""Predict the cost of training on TPU slices with XLA's TPU compiler, and compare its estimates with the chips' peaks.

    python -m bench.tpu measure --label after          # plans, minutes each; continues after an interruption
    python -m bench.tpu measure --label after --configs cfm1024 --kinds v5e v6e --chips 4 256
    python -m bench.tpu measure --label fsdp --configs cfm1024 --kinds v5e --chips 4 --batch-per-chip 16 --fsdp 4
    python -m bench.tpu table                          # the table of bench/tpu.md from bench/tpu.jsonl
    python -m bench.tpu extrapolate                    # larger slices from the rows of 4 chips, without compiling
    python -m bench.tpu calibrate                      # matrix products and copies against the peaks; a minute
    python -m bench.tpu blocks                         # single layers and what they replaced; half an hour

Each plan is a run of python -m fmboost_jax.plan, appended to bench/tpu.jsonl as soon as it is done.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import SingleDeviceSharding

from fmboost_jax.errors import run
from fmboost_jax.models.blocks import EPSILON, GROUPS, conv
from fmboost_jax.models.convolution import direct, upsample_nearest
from fmboost_jax.models.unet import ResBlock, UNetConfig
from fmboost_jax.planning.collectives import link_seconds
from fmboost_jax.planning.costs import operations, total_cycles
from fmboost_jax.planning.hlo import parse
from fmboost_jax.planning.topologies import CHIPS, Slice, tpu_slice

ROWS = pathlib.Path(__file__).with_name("tpu.jsonl")
SIDES = {
    2: {4: "2x2", 16: "4x4", 64: "8x8", 256: "16x16"},
    3: {4: "2x2x1", 16: "2x2x4", 64: "4x4x4", 256: "4x8x8"},
}
CONFIGS = ("cfm1024", "cfm2048")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        "bench.tpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("measure", "table", "extrapolate", "calibrate", "blocks"))
    parser.add_argument("--label", default="after", help="label of the rows (default: after)")
    parser.add_argument("--configs", nargs="+", choices=CONFIGS, default=CONFIGS)
    parser.add_argument("--kinds", nargs="+", choices=CHIPS, default=list(CHIPS))
    parser.add_argument("--chips", nargs="+", type=int, choices=SIDES[2], default=list(SIDES[2]))
    parser.add_argument(
        "--batch-per-chip", type=int, default=8, help="images a chip, best a multiple of 8 (default: 8)"
    )
    parser.add_argument("--fsdp", type=int, default=1, help="chips that share parameters and moments (default: 1)")
    arguments = parser.parse_args()
    if arguments.command == "measure":
        measure(arguments)
    elif arguments.command == "table":
        print(table(rows()))
    elif arguments.command == "extrapolate":
        print(table(extrapolate([row for row in rows() if row["label"] == arguments.label])))
    elif arguments.command == "calibrate":
        calibrate()
    else:
        blocks(arguments.kinds)


def measure(arguments) -> None:
    """Make the plans of the arguments that bench/tpu.jsonl lacks."""
    present = {_key(row) for row in rows()}
    for config in arguments.configs:
        for kind in arguments.kinds:
            for chips in arguments.chips:
                topology, batch = f"{kind}:{SIDES[CHIPS[kind].axes][chips]}", arguments.batch_per_chip
                if (arguments.label, config, topology, batch, arguments.fsdp) in present:
                    continue
                print(f"{config}, {topology}, {batch} a chip, fsdp {arguments.fsdp}", file=sys.stderr, flush=True)
                words = [f"--config=configs/{config}.py", f"--topology={topology}", f"--batch-per-chip={batch}"]
                words.append(f"--config.mesh.fsdp={arguments.fsdp}")
                done = subprocess.run(
                    [sys.executable, "-m", "fmboost_jax.plan", *words, "--json"], check=True, stdout=subprocess.PIPE
                )
                row = {"label": arguments.label, "name": config, **json.loads(done.stdout)}
                with open(ROWS, "a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                    file.flush()
                    os.fsync(file.fileno())


def table(measured: list[dict]) -> str:
    """Format rows as Markdown; "loss" compares images a second and chip with the smallest slice of the kind."""
    lines = [
        "| config | slice | chips | batch a chip | fsdp | | HBM | step | compute | MFU | images/s | loss |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    smallest: dict[tuple, float] = {}
    for row in sorted(
        measured, key=lambda row: (row["name"], row["topology"][:3], row["label"] != "before", row["chips"])
    ):
        fsdp = row["mesh"]["fsdp"]
        start = f"| {row['name']} | {row['topology']} | {row['chips']} | {row['batch_per_chip']:g} | {fsdp} "
        start += f"| {row['label']} "
        memory, found = row["memory"], row["prediction"]
        share = f"| {memory['total'] / 2**30:.1f} GiB, {memory['share']:.0%} "
        if found is None:
            lines.append(f"{start}{share}| does not fit | | | | |")
            continue
        speed = found["images_per_second"] / row["chips"]
        key = row["name"], row["topology"][:3], row["label"], row["batch_per_chip"], fsdp
        first = smallest.setdefault(key, speed)
        lines.append(
            f"{start}{share}| {found['seconds'] * 1e3:.1f} ms | {found['compute_seconds'] * 1e3:.1f} ms "
            f"| {found['mfu']:.1%} | {found['images_per_second']:,.0f} | {1 - speed / first:.1%} |"
        )
    return "\n".join(lines)


def extrapolate(measured: list[dict]) -> list[dict]:
    """Extrapolate rows of 4 chips to larger slices: same compute, the gradients' sum on the larger slice's links.

    In data-parallel training every chip runs the same program on its images, for any number of chips.
    """
    small = [row for row in measured if row["chips"] == 4 and row["mesh"]["fsdp"] == 1 and row["prediction"]]
    slices = {}
    for kind in {row["topology"].partition(":")[0] for row in small}:
        slices[kind] = [tpu_slice(f"{kind}:{sides}") for sides in SIDES[CHIPS[kind].axes].values()]
    return [_extrapolate(row, larger) for row in small for larger in slices[row["topology"].partition(":")[0]]]


def _extrapolate(row: dict, tpus: Slice) -> dict:
    found, chips = row["prediction"], len(tpus.devices)
    summed = sum(collective["bytes"] for collective in found["collectives"])
    seconds = found["compute_seconds"] + link_seconds("all-reduce", summed, list(range(chips)), tpus)
    change = found["seconds"] / seconds
    images = found["images_per_second"] * change * chips / row["chips"]
    found = found | {"seconds": seconds, "mfu": found["mfu"] * change, "images_per_second": images}
    return row | {"label": "extrapolated", "topology": tpus.name, "chips": chips, "prediction": found}


def blocks(kinds: list[str]) -> None:
    """Print the cycles of the layers in bench/tpu.md, each as soon as it is compiled."""
    _for_slices()
    print("| chip | layer, bfloat16 | images | forward | forward and backward |")
    print("| --- | --- | --- | --- | --- |")
    for kind in kinds:
        device = tpu_slice(f"{kind}:{SIDES[CHIPS[kind].axes][4]}").devices[0]
        large = 32 if kind == "v6e" else 8
        for name, layer, side, batches in (
            ("residual block, 128 channels at 128²", residual_block(128), 128, (1, 2, 4, 8)),
            ("residual block, 128 + 128 channels at 128²", residual_block(256), 128, (large,)),
            ("the same with flax.nnx.GroupNorm", residual_block(256, norm=_grouped_norm), 128, (large,)),
            ("upsampling, 256 channels, 64² → 128²", upsampling(256), 64, (large,)),
            ("the same in two operations", upsampling(256, fused=False), 64, (large,)),
            ("way up: upsampling of 256 channels, 64² → 128², and a block with a skip", way_up(256), 64, (large,)),
            ("the same with JAX's gradient of the upsampling's kernel", way_up(256, gradient=False), 64, (large,)),
            ("the same with the norm's sums over the concatenation", way_up(256, parts=False), 64, (large,)),
        ):
            for batch in batches:
                numbers = [cycles(layer, batch, side, device, gradient) for gradient in (False, True)]
                forward, both = (f"{number / 1e6:.2f}M" for number in numbers)
                print(f"| {kind} | {name} | {batch} | {forward} | {both} |", flush=True)


def residual_block(channels: int, norm=None):
    """Residual block of the base network from `channels` to 128 channels; `norm` replaces its norms."""
    config = UNetConfig(dtype="bfloat16")

    def make():
        block = ResBlock(channels, 128, 512, config, rngs=nnx.Rngs(0))
        if norm:
            block.norm1, block.norm2 = norm(channels), norm(128)
        return block

    return channels, make, lambda block, x: block(x, jnp.ones((x.shape[0], 512)))


def _grouped_norm(channels: int) -> nnx.GroupNorm:
    return nnx.GroupNorm(channels, num_groups=GROUPS, epsilon=EPSILON, rngs=nnx.Rngs(0))


def upsampling(channels: int, fused: bool = True):
    """Nearest ×2 and a convolution: `fused`, as in the network, or as two operations."""

    def make():
        return conv(channels, channels, upsample=fused, dtype="bfloat16", rngs=nnx.Rngs(0))

    return channels, make, lambda layer, x: layer(x if fused else upsample_nearest(x))


def way_up(channels: int, gradient: bool = True, parts: bool = True):
    """Residual block, upsampling, and a block that takes a skip beside it.

    Args:
        channels: channels of the input; half of them at the end.
        gradient: whether the upsampling's kernel has the network's gradient, not JAX's.
        parts: whether the maps are summed before they are concatenated, as in the network.
    """
    half, config = channels // 2, UNetConfig(dtype="bfloat16")

    def make():
        rngs = nnx.Rngs(0)
        up = conv(channels, channels, upsample=True, dtype="bfloat16", rngs=rngs)
        if not gradient:
            up.conv_general_dilated = _transposed_conv
        sides = (channels, channels), (half, half), (channels + half, half)
        return nnx.List([up, *(ResBlock(*side, 512, config, rngs=rngs) for side in sides)])

    def apply(layers, x):
        up, before, skipped, after = layers
        embedding = jnp.ones((x.shape[0], 512))
        skip = skipped(upsample_nearest(x[..., :half]), embedding)
        x = up(before(x, embedding))
        return after(x, embedding, beside=skip) if parts else after(jnp.concatenate([x, skip], -1), embedding)

    return channels, make, apply


def _transposed_conv(x, kernel, strides, padding, **options):
    """`upsample_conv` for TPUs with JAX's gradient; its 4×4 kernel is padded, not folded, which costs the same."""
    padding = [(2 * before, 2 * after) for before, after in padding]
    return direct(x, jnp.pad(kernel, [(0, 1), (0, 1), (0, 0), (0, 0)]), strides, padding, lhs_dilation=(2, 2))


def cycles(layer, batch: int, side: int, device: jax.Device, gradient: bool) -> int:
    """Cycles of one run on one chip; the gradient is with respect to parameters and input."""
    channels, make, apply = layer
    graph, parameters = nnx.split(nnx.eval_shape(make))
    sharding = SingleDeviceSharding(device)
    x = jax.ShapeDtypeStruct((batch, side, side, channels), jnp.bfloat16, sharding=sharding)
    parameters = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), parameters)

    def forward(parameters, x):
        return apply(nnx.merge(graph, parameters), x)

    def backward(parameters, x, of_output):
        return jax.vjp(forward, parameters, x)[1](of_output)

    inputs = (parameters, x)
    if gradient:
        output = jax.eval_shape(forward, *inputs)
        inputs += (jax.ShapeDtypeStruct(output.shape, output.dtype, sharding=sharding),)
    program = jax.jit(backward if gradient else forward).lower(*inputs).compile()
    return total_cycles(operations(parse(program.as_text())))


def _for_slices() -> None:
    """Run JAX on CPUs, without its compilation cache."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)


def calibrate() -> None:
    """Print the share of the peaks that the compiler predicts for programs that should reach them."""
    _for_slices()
    print("| chip | bfloat16 product, 8192³ | 16384³ | of the peak | HBM, x ← 2x + 1 of 1 GiB |")
    print("| --- | --- | --- | --- | --- |")
    for kind, chip in CHIPS.items():
        device = tpu_slice(f"{kind}:{SIDES[chip.axes][4]}").devices[0]

        def seconds(function, *shapes, dtype, device=device, chip=chip) -> float:
            sharding = SingleDeviceSharding(device)
            inputs = [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape in shapes]
            return total_cycles(operations(parse(jax.jit(function).lower(*inputs).compile().as_text()))) / chip.clock

        rates = [2 * n**3 / seconds(jnp.matmul, (n, n), (n, n), dtype=jnp.bfloat16) for n in (8192, 16384)]
        memory = 2 * 2**30 / seconds(lambda x: 2 * x + 1, (2**18, 1024), dtype=jnp.float32)
        print(
            f"| {kind} | {rates[0] / 1e12:.0f} TFLOP/s | {rates[1] / 1e12:.0f} TFLOP/s | {rates[1] / chip.peak:.0%} "
            f"| {memory / 1e9:.0f} GB/s |"
        )


def rows() -> list[dict]:
    """Read the measured rows, the oldest first."""
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def _key(row: dict) -> tuple:
    return row["label"], row["name"], row["topology"], row["batch_per_chip"], row["mesh"]["fsdp"]


if __name__ == "__main__":
    run(main)
