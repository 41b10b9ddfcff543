"""PyTorch modules as pure JAX functions of (weights, inputs), through torchax.

The module's `forward` runs once, while JAX traces it; the compiled program holds no PyTorch. Needs the extra
`[generate]`.
"""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmboost_jax.errors import InputError
from fmboost_jax.generation.lowerings import lowerings

# Of a module on the meta device they are shapes.
Weights = dict[str, jax.Array | jax.ShapeDtypeStruct]

_MISSING = "base models in JAX need torchax 0.0.14 or newer beside PyTorch: pip install 'fmboost_jax[generate]'"


@dataclasses.dataclass(frozen=True)
class TorchFunction:
    """The forward pass of a PyTorch module without its weights; pure, meant for the inside of a jitted function.

    Attributes:
        module: on PyTorch's meta device; it holds shapes alone.
        environment: torchax's.
        kernels: names of the weights of two-dimensional convolutions, which are (height, width, inputs, outputs) here:
            the order that convolutions read. In PyTorch's order they would be transposed at each call.
    """

    module: Any
    environment: Any
    kernels: frozenset[str] = frozenset()

    def __call__(self, weights: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        """Apply the module.

        Args:
            weights: parameters and buffers by name, as `extract` returns them.
            arguments, options: of the module's `forward`; arrays in place of tensors, `return_dict=False` where the
                module would return an object.
        """
        import torch

        to_torch, to_jax = self.environment.j2t_iso, self.environment.t2j_iso
        weights = {
            name: jnp.transpose(array, (3, 2, 0, 1)) if name in self.kernels else array
            for name, array in weights.items()
        }
        with self.environment, torch.no_grad(), warnings.catch_warnings():
            # JAX truncates the 64-bit integers that PyTorch code asks for.
            warnings.filterwarnings("ignore", "Explicitly requested dtype")
            tensors, *inputs = to_torch(weights), to_torch(arguments), to_torch(options)
            return to_jax(torch.func.functional_call(self.module, tensors, *inputs))


def extract(module: Any, dtype: str = "float32") -> tuple[TorchFunction, Weights]:
    """Split a PyTorch module into a function and its weights.

    Args:
        module: in evaluation mode from here on, and without its weights: they move to JAX, so that no second copy is
            held. Of a module on the meta device, which has none, the shapes are returned in their place.
        dtype: "float32" or "bfloat16": the weights' type, in which PyTorch's own rules then compute.

    Returns:
        The function, and parameters and buffers by their names in the module; kernels of two-dimensional convolutions
        as `TorchFunction.kernels` says.

    Raises:
        InputError: torchax is missing or too old.
    """
    environment = _environment()
    module = module.eval().requires_grad_(False)
    named = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    # A weight that two layers share, such as T5's embedding, has two names and one array.
    kernels = _kernels(module)
    unique = {id(tensor): (tensor, name in kernels) for name, tensor in named}
    arrays = {key: _to_jax(tensor, dtype, kernel) for key, (tensor, kernel) in unique.items()}
    weights = {name: arrays[id(tensor)] for name, tensor in named}
    return TorchFunction(module.to("meta"), environment, kernels), weights


def _kernels(module: Any) -> frozenset[str]:
    import torch

    layers = (name for name, layer in module.named_modules() if isinstance(layer, torch.nn.Conv2d))
    return frozenset(f"{name}.weight" if name else "weight" for name in layers)


def _to_jax(tensor: Any, dtype: str, kernel: bool) -> jax.Array | jax.ShapeDtypeStruct:
    tensor = tensor.permute(2, 3, 1, 0) if kernel else tensor
    floating = tensor.is_floating_point()
    if tensor.is_meta:
        return jax.ShapeDtypeStruct(tuple(tensor.shape), dtype if floating else "int32")
    return jnp.asarray((tensor.float() if floating else tensor).cpu().numpy(), dtype if floating else np.int32)


def _environment() -> Any:
    """torchax's table of operations, some of them replaced by this package's."""
    try:
        import torchax

        environment: Any = torchax.tensor.Environment()
    # An old torchax fails in its own ways beside a newer PyTorch.
    except (ImportError, AttributeError) as error:
        raise InputError(_MISSING) from error

    def of_tensors(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments, **options):
            arrays, named = environment.t2j_iso(arguments), environment.t2j_iso(options)
            return environment.j2t_iso(function(*arrays, **named))

        return call

    for operation, function in lowerings().items():
        environment.override_op_definition(operation, of_tensors(function))
    return environment
