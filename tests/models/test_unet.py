"""The UNet: parameter count, sizes, refusals, remat, dropout, attention in blocks of queries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fmboost_jax.errors import InputError
from fmboost_jax.models import attention
from fmboost_jax.models.parameters import abstract, count, merge, rounded, split
from fmboost_jax.models.unet import UNet, UNetConfig
from tests.conftest import relative_error
from tests.random_models import random_model

SMALL = {
    "model_channels": 32,
    "channel_mult": (1, 2),
    "attention_resolutions": (2,),
    "num_res_blocks": 1,
    "dim_head": 16,
    "num_heads": 2,
}


def inputs(height, width, context=4):
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (2, height, width, 4))
    return x, jnp.array([0.1, 0.7]), jax.random.normal(keys[1], (2, height, width, context)) if context else None


def call(unet, *arguments, **options):
    graph, parameters = split(unet)
    return jax.jit(lambda p: merge(graph, p)(*arguments, **options))(parameters)


def test_base_config_has_the_papers_parameters():
    assert count(split(abstract(UNet, UNetConfig()))[1]) == 305_806_340


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((16, 16), {}),
        ((10, 26), {}),
        ((10, 26), {"in_channels": 4}),
        ((10, 26), {"channel_mult": (2, 1)}),
        ((10, 26), {"conv_resample": False}),
    ],
)
def test_sizes_that_the_levels_can_halve_are_accepted(size, options):
    unet = random_model(UNet, UNetConfig(**{**SMALL, **options}))
    velocity = call(unet, *inputs(*size, context=unet.config.context_channels))
    assert velocity.shape == (2, *size, 4)
    assert velocity.dtype == jnp.float32
    assert np.isfinite(velocity).all()


def test_starts_at_zero_velocity():
    velocity = call(UNet(UNetConfig(**SMALL), rngs=nnx.Rngs(0)), *inputs(8, 8))
    assert (velocity == 0).all()


@pytest.mark.parametrize(
    ("size", "context", "expected"),
    [((9, 16), 4, "multiples of 2"), ((8, 8), None, "context of 4"), ((8, 8), 3, "found 4 and 3")],
)
def test_inputs_that_do_not_fit_are_refused(size, context, expected):
    unet = abstract(UNet, UNetConfig(**SMALL))
    with pytest.raises(InputError, match=expected):
        jax.eval_shape(lambda: unet(*inputs(*size, context)))


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("model_channels", 48, "multiple of 32"),
        ("attention_layout", "mixed", "interleaved"),
        ("dtype", "int8", "bfloat16"),
    ],
)
def test_impossible_configs_are_refused(field, value, expected):
    with pytest.raises(InputError, match=expected):
        UNetConfig(**{field: value})
    with pytest.raises(InputError, match="widths"):
        UNetConfig.from_dict({"widths": [1]})


@pytest.mark.parametrize("factors", [(), (1,), (8, 16), (1, 2, 4, 8, 16)])
def test_attention_at_levels_is_accepted(factors):
    UNetConfig(attention_resolutions=factors).check_attention()


@pytest.mark.parametrize("factors", [(3,), (3, 8), (0, 8), (-2,), (16,)])
def test_attention_without_effect_is_refused(factors):
    config = UNetConfig(attention_resolutions=factors)  # as old runs and the reference's checkpoints may have it
    with pytest.raises(InputError, match=r"expected factors of this UNet's levels, 1, 2, 4, 8, or \(\)"):
        config.check_attention()


def test_remat_saves_less_for_the_same_gradient():
    gradients, kept, arguments = [], [], inputs(8, 8)
    for remat in (False, True):
        unet = random_model(UNet, UNetConfig(**{**SMALL, "channel_mult": (1,), "num_res_blocks": 3}, remat=remat))
        graph, parameters = split(unet)

        def loss(parameters, *arguments, graph=graph):
            return jnp.sum(merge(graph, parameters)(*arguments) ** 2)

        gradient = jax.jit(jax.grad(loss))(parameters, *arguments)
        gradients.append(np.concatenate([leaf.ravel() for leaf in gradient.values()]))
        # What a backward pass holds is the leaves of the function that runs it.
        backward = jax.eval_shape(lambda p, loss=loss: jax.vjp(loss, p, *arguments)[1], parameters)
        kept.append(sum(leaf.size for leaf in jax.tree.leaves(backward)))
    assert relative_error(gradients[1], gradients[0]) < 1e-5
    assert kept[1] < 0.6 * kept[0]


def test_dropout_follows_its_key_alone():
    unet = random_model(UNet, UNetConfig(**SMALL, dropout=0.5))
    arguments = inputs(8, 8)
    none, first, again, second = (
        call(unet, *arguments, dropout_key=key)
        for key in (None, jax.random.key(1), jax.random.key(1), jax.random.key(2))
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - second).max() > 1e-3
    assert np.abs(first - none).max() > 1e-3


def test_bfloat16_is_near_float32():
    full = random_model(UNet, UNetConfig(**SMALL))
    graph = split(abstract(UNet, UNetConfig(**SMALL, dtype="bfloat16")))[0]
    half = merge(graph, split(full)[1])
    expected, found = (np.asarray(call(unet, *inputs(16, 16))) for unet in (full, half))
    assert 1e-4 < np.linalg.norm(found - expected) / np.linalg.norm(expected) < 0.05


@pytest.mark.parametrize("linear", [False, True])
def test_attention_in_blocks_is_exact(monkeypatch, linear):
    unet = random_model(UNet, UNetConfig(**SMALL, use_linear_attn=linear))
    expected = call(unet, *inputs(12, 14))
    monkeypatch.setattr(attention, "QUERY_BLOCK", 5)
    np.testing.assert_allclose(call(unet, *inputs(12, 14)), expected, rtol=1e-4, atol=1e-4)


def test_rounded_parameters_change_no_bit_of_a_bfloat16_network():
    unet = random_model(UNet, UNetConfig(**SMALL, dtype="bfloat16"))
    graph, parameters = split(unet)
    rough = rounded(graph, parameters)
    assert {array.dtype.name for name, array in rough.items() if "conv" in name} == {"bfloat16"}
    assert {array.dtype.name for name, array in rough.items() if "norm" in name or "embed" in name} == {"float32"}
    x, t, context = inputs(8, 8)
    run = jax.jit(lambda parameters: merge(graph, parameters)(x, t, context))
    np.testing.assert_array_equal(run(rough), run(parameters))
    exact = split(random_model(UNet, UNetConfig(**SMALL)))
    assert all(array is exact[1][name] for name, array in rounded(*exact).items())
