"""Small PyTorch models of the networks, written from the equations and independent of this package.

Modules carry the names of the reference's (UNet) and CompVis' (autoencoder) state dicts; everything is NCHW float32.
"""

import torch


def randomised(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """The module with every parameter drawn at random, none zero, at a size that keeps activations near 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.data = noise / parameter[0].numel() ** 0.5
        else:
            parameter.data = 0.2 * noise + (1.0 if name.endswith("weight") else 0.0)
    return module.eval().requires_grad_(False)


def recorded(module: torch.nn.Module, *inputs) -> dict[str, tuple[tuple, torch.Tensor]]:
    """Run the module; (inputs, output) of each of its submodules by name, of the whole under ""."""
    calls = {}

    def note(name):
        def hook(_, inputs, output):
            calls[name] = (inputs, output)

        return hook

    handles = [child.register_forward_hook(note(name)) for name, child in module.named_modules()]
    module(*inputs)
    for handle in handles:
        handle.remove()
    return calls
