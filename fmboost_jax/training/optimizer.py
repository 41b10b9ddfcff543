"""The optimiser of a config: Adam with a linear warm-up, then a constant rate (arXiv 2312.07360, appendix)."""

import optax
from ml_collections import ConfigDict


def learning_rate(optim: ConfigDict) -> optax.Schedule:
    """Rate at each update: from 0 linearly to `optim.lr` over `optim.warmup_steps` updates, then constant."""
    return optax.linear_schedule(0.0, optim.lr, optim.warmup_steps) if optim.warmup_steps else (lambda _: optim.lr)


def make_optimizer(optim: ConfigDict) -> optax.GradientTransformation:
    """Adam (Kingma and Ba 2014, arXiv 1412.6980); gradients clipped to the norm `optim.clip_norm`, 0 for none."""
    adam = optax.adam(learning_rate(optim), b1=optim.b1, b2=optim.b2, eps=optim.eps)
    return optax.chain(optax.clip_by_global_norm(optim.clip_norm), adam) if optim.clip_norm else adam
