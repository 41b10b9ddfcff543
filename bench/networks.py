"""The UNet at work, ours and the PyTorch model of the tests: sampling and training with the same weights.

Both get their random weights from one file. On a GPU both compute in bfloat16 (PyTorch by autocast), elsewhere in
float32. The PyTorch model runs in its own layout and in channels last, which PyTorch advises for convolutions, in eager
mode and under `torch.compile`.
"""

import dataclasses
import functools
import pathlib
import types

import numpy as np
from safetensors.numpy import load_file, save_file

from bench.alternation import Implementation

TORCH_MODES = {
    "PyTorch model, eager": {},
    "PyTorch model, eager, channels last": {"channels_last": True},
    "PyTorch model, torch.compile, channels last": {"channels_last": True, "compiled": True},
}
LEARNING_RATE = 3e-5


@dataclasses.dataclass(frozen=True)
class Work:
    """One amount of work.

    Attributes:
        weights: safetensors file of `write_weights`.
        config: fields of `UNetConfig` that are not the base network's.
        batch: latents at once.
        latent: their height and width.
        steps: Euler steps of sampling.
    """

    weights: pathlib.Path
    config: dict
    batch: int
    latent: int
    steps: int = 1


def write_weights(path: pathlib.Path, config: dict) -> None:
    """Random weights under the reference's names, none of them zero."""
    from flax import nnx

    from fmboost_jax.interop import state_dict
    from fmboost_jax.models.unet import UNet, UNetConfig

    unet = UNet(UNetConfig(**{**config, "attention_layout": "interleaved"}), rngs=nnx.Rngs(0))
    random = np.random.default_rng(0)
    tensors = {}
    for name, tensor in state_dict(unet).items():
        drawn = tensor if tensor.any() else 0.02 * random.standard_normal(tensor.shape)
        tensors[name] = np.ascontiguousarray(drawn, np.float32)
    save_file(tensors, path)


def sampling(work: Work) -> list[Implementation]:
    """Return the implementations of sampling; ours is the first."""
    peers = [Implementation(name, functools.partial(sample_torch, work, **mode)) for name, mode in TORCH_MODES.items()]
    return [Implementation("fmboost_jax", functools.partial(sample_ours, work)), *peers]


def training(work: Work) -> list[Implementation]:
    """Return the implementations of a training step: loss, gradient, Adam, weight average; ours is the first."""
    peers = [Implementation(name, functools.partial(train_torch, work, **mode)) for name, mode in TORCH_MODES.items()]
    return [Implementation("fmboost_jax", functools.partial(train_ours, work)), *peers]


def latents(work: Work) -> tuple[np.ndarray, np.ndarray]:
    """A state and a context, NHWC."""
    shape = (work.batch, work.latent, work.latent, 4)
    return tuple(np.random.default_rng(1).standard_normal((2, *shape), np.float32))


def sample_ours(work: Work):
    """One boost's flow from x0 to x1."""
    import jax
    import jax.numpy as jnp

    from fmboost_jax.flow.solvers import integrate
    from fmboost_jax.models.parameters import merge
    from fmboost_jax.runtime.compilation import FLOW_OPTIONS

    graph, parameters = _load_ours(work)
    x, context = (jnp.asarray(array) for array in latents(work))

    @functools.partial(jax.jit, compiler_options=FLOW_OPTIONS)
    def sample(parameters, x, context):
        unet = merge(graph, parameters)
        return integrate(lambda x, t: unet(x, t, context), x, method="euler", steps=work.steps)

    return lambda: sample(parameters, x, context).block_until_ready()


def train_ours(work: Work):
    """One step of `fmboost_jax.training.step`, the state donated, after what `fmboost_jax.train` begins with."""
    return trainer(work)[0]


def trainer(work: Work):
    """The step of `train_ours`, and a function that returns its state."""
    from fmboost_jax.runtime.memory import keep_freed_memory

    keep_freed_memory()
    import jax
    import jax.numpy as jnp

    from fmboost_jax.configuration import read_config
    from fmboost_jax.models.first_stage import LatentSpec
    from fmboost_jax.training.config import TrainingConfig
    from fmboost_jax.training.optimizer import make_optimizer
    from fmboost_jax.training.state import TrainState
    from fmboost_jax.training.step import make_train_step

    config = read_config("cfm1024.py", (), TrainingConfig)
    dtype = "bfloat16" if jax.default_backend() == "gpu" else "float32"
    architecture = {**work.config, "dtype": dtype, "attention_layout": "interleaved"}
    config = dataclasses.replace(config, architecture=dataclasses.replace(config.architecture, **architecture))
    _, parameters = _load_ours(work)
    state = TrainState.create(parameters, make_optimizer(config.optim))
    low, high = latents(work)
    batch = {"low": jnp.asarray(low), "high": jnp.asarray(high), "position": jnp.arange(work.batch)}
    step = jax.jit(make_train_step(config, LatentSpec("identity", "", 4, 1)), donate_argnums=0)

    def run():
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))

    return run, lambda: state


def _load_ours(work: Work):
    import jax

    from fmboost_jax.interop import load_unet
    from fmboost_jax.models.parameters import split
    from fmboost_jax.models.unet import UNetConfig

    dtype = "bfloat16" if jax.default_backend() == "gpu" else "float32"
    config = UNetConfig(**{**work.config, "attention_layout": "interleaved", "dtype": dtype})
    return split(load_unet(load_file(work.weights), config))


def sample_torch(work: Work, channels_last: bool = False, compiled: bool = False):
    """The same flow in PyTorch, on a GPU with parameters in bfloat16."""
    import torch

    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    net, device = _load_torch(work, channels_last, compiled, dtype)
    x0, context = (_image(array, channels_last, device) for array in latents(work))

    def run():
        with torch.inference_mode(), _autocast(device):
            x = x0
            for i in range(work.steps):
                x = x + net(x, torch.full((work.batch,), i / work.steps, device=device), context) / work.steps
        return x.sum().item()  # waits for a GPU

    return run


def train_torch(work: Work, channels_last: bool = False, compiled: bool = False):
    """The same step in PyTorch: Adam in its fused form, the average by one multi-tensor call."""
    import torch

    net, device = _load_torch(work, channels_last, compiled)
    parameters = list(net.parameters())
    average = [parameter.detach().clone() for parameter in parameters]
    adam = torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True)
    low, high = (_image(array, channels_last, device) for array in latents(work))

    def run():
        noise, t = torch.randn_like(low), torch.rand(work.batch, device=device)
        x0 = 0.6539**0.5 * low + (1 - 0.6539) ** 0.5 * noise
        x = x0 + t[:, None, None, None] * (high - x0)
        with _autocast(device):
            velocity = net(x, t, low)
        loss = (velocity.float() - (high - x0)).square().mean()
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1e-3)
        return loss.item()

    return run


def _load_torch(work: Work, channels_last: bool, compiled: bool, dtype=None):
    """The network and its device; on a GPU, compiled networks run as CUDA graphs."""
    import torch
    from safetensors.torch import load_file

    from tests.torch_reference.unet import UNet

    base = {
        "in_channels": 8,
        "model_channels": 128,
        "out_channels": 4,
        "num_res_blocks": 3,
        "channel_mult": (1, 2, 4, 8),
        "attention_resolutions": (8, 16),
        "conv_resample": True,
        "dim_head": 64,
        "num_heads": 4,
        "use_linear_attn": False,
        "use_scale_shift_norm": True,
        "pool_factor": 1,
    }
    net = UNet(types.SimpleNamespace(**{**base, **work.config, "attention_layout": "interleaved"}))
    net.load_state_dict(load_file(work.weights))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = net.to(device, dtype)
    if channels_last:
        net = net.to(memory_format=torch.channels_last)
    mode = "reduce-overhead" if device == "cuda" else "default"
    return torch.compile(net, mode=mode) if compiled else net, device


def _image(array: np.ndarray, channels_last: bool, device: str):
    import torch

    image = torch.from_numpy(array).permute(0, 3, 1, 2).to(device)
    return image.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _autocast(device: str):
    import torch

    return torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda")
