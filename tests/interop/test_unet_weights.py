"""The velocity network's weights: the reference's numbers, a PyTorch model by layers, conversion back, bad input."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from fmboost_jax.errors import InputError
from fmboost_jax.interop import load_lightning, load_unet, state_dict, unet_config
from fmboost_jax.interop.names import spell
from fmboost_jax.interop.tables import REFERENCE_UNET
from fmboost_jax.interop.unet import ReferenceCheckpoint
from fmboost_jax.models.parameters import abstract, split
from fmboost_jax.models.unet import UNet, UNetConfig
from tests.conftest import GOLDEN, relative_error
from tests.random_models import random_model
from tests.torch_reference import randomised, recorded
from tests.torch_reference.unet import UNet as Twin

SMALL = {
    "in_channels": 8,
    "model_channels": 32,
    "out_channels": 4,
    "num_res_blocks": 1,
    "channel_mult": (1, 2),
    "attention_resolutions": (2,),
    "dim_head": 16,
    "num_heads": 2,
}


def nhwc(x):
    return jnp.asarray(np.moveaxis(np.asarray(x), 1, -1))


def nchw(x) -> np.ndarray:
    return np.moveaxis(np.asarray(x), -1, 1)


def inputs(config: UNetConfig, seed: int, height: int, width: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((2, config.out_channels, height, width), generator=generator)
    context = torch.randn((2, config.context_channels, height, width), generator=generator)
    return x, torch.rand(2, generator=generator), context if config.context_channels else None


def same(found: dict[str, np.ndarray], expected) -> bool:
    """The same names with the same bits."""
    return found.keys() == expected.keys() and all(np.array_equal(found[k], np.asarray(expected[k])) for k in found)


@pytest.mark.parametrize("variant", ["attention", "linear_attention", "plain_norm_avgpool", "pool_factor_2"])
def test_reference_numbers(golden, variant):
    file = golden(f"unet_{variant}.npz")
    weights = {name.removeprefix("param/"): value for name, value in file.items() if name.startswith("param/")}
    model = load_unet(weights, json.loads(str(file["config"])))
    velocity = model(nhwc(file["in/x"]), jnp.asarray(file["in/t"]), nhwc(file["in/context"]))
    assert relative_error(nchw(velocity), file["out/v"]) < 1e-5
    assert same(state_dict(model), weights)


@pytest.mark.parametrize("config", [UNetConfig(), {"attention_layout": "heads"}])
def test_a_training_checkpoint_in_another_attention_layout_is_refused(config):
    checkpoint = ReferenceCheckpoint("last.ckpt", {"ema_model.ema_model.net.out.2.bias": np.zeros(4)}, 1, None)
    with pytest.raises(InputError, match=r'last\.ckpt: trained with attention_layout "interleaved", .* "heads"'):
        checkpoint.unet(config=config)


@pytest.mark.parametrize(
    ("config", "layout"), [(UNetConfig(), "interleaved"), ({"attention_layout": "heads"}, "interleaved"), ({}, "heads")]
)
def test_a_bare_state_dict_in_another_attention_layout_is_refused(config, layout):
    with pytest.raises(InputError, match=rf'trained with attention_layout "{layout}", the config has'):
        load_unet({}, config, layout)
    with pytest.raises(InputError, match="missing keys"):
        load_unet({}, {**SMALL, "attention_layout": layout}, layout)


def test_reference_training_checkpoint(golden):
    file = golden("lightning_expected.npz")
    arguments = nhwc(file["in/x"]), jnp.asarray(file["in/t"]), nhwc(file["in/context"])
    for ema, name in ((True, "out/ema"), (False, "out/online")):
        model = load_lightning(str(GOLDEN / "lightning.ckpt.gz"), ema=ema)
        assert relative_error(nchw(model(*arguments)), file[name]) < 1e-5


# An example takes seconds; to shrink a failing one would take minutes.
DEAR = (Phase.explicit, Phase.reuse, Phase.generate)

architectures = st.fixed_dictionaries(
    {
        "in_channels": st.sampled_from([4, 8]),
        "out_channels": st.just(4),
        "model_channels": st.just(32),
        "num_res_blocks": st.integers(1, 2),
        "channel_mult": st.sampled_from([(1,), (1, 2), (1, 3), (1, 1, 2)]),
        "attention_resolutions": st.sampled_from([(), (1,), (2,), (1, 4)]),
        "conv_resample": st.booleans(),
        "dim_head": st.sampled_from([8, 16]),
        "num_heads": st.integers(1, 3),
        "use_linear_attn": st.booleans(),
        "use_scale_shift_norm": st.booleans(),
        "pool_factor": st.sampled_from([-1, 1, 2, 4, 8]),
        "attention_layout": st.sampled_from(["heads", "interleaved"]),
    }
)


@settings(max_examples=4, deadline=None, phases=DEAR)
@example(architecture={**SMALL, "pool_factor": 8}, seed=0, height=1, width=2)
@given(architecture=architectures, seed=st.integers(0, 1000), height=st.integers(1, 2), width=st.integers(1, 3))
def test_agrees_with_the_pytorch_model(architecture, seed, height, width):
    config = UNetConfig.from_dict(architecture)
    theirs = randomised(Twin(config), seed)
    ours = load_unet(theirs.state_dict(), config, config.attention_layout)
    x, t, context = inputs(config, seed, 2 * height * config.size_multiple, 2 * width * config.size_multiple)
    found = ours(nhwc(x), jnp.asarray(t), None if context is None else nhwc(context))
    assert relative_error(nchw(found), theirs(x, t, context)) < 1e-5
    assert same(state_dict(ours), theirs.state_dict())


def test_agrees_with_the_pytorch_model_layer_by_layer():
    """Every block, attention and resampling alone, on the input of the PyTorch model's layer."""
    config = unet_config({**SMALL, "num_res_blocks": 2, "use_linear_attn": True})
    theirs = randomised(Twin(config), 1)
    ours = load_unet(theirs.state_dict(), config)
    calls = recorded(theirs, *inputs(config, 0, 8, 12))
    layers = {"input_blocks.0.0": ours.conv_in, "middle_block.0": ours.middle.block1}
    layers |= {"middle_block.1": ours.middle.attention, "middle_block.2": ours.middle.block2, "out.2": ours.conv_out}
    for n, i, j in [(1, 0, 0), (2, 0, 1), (4, 1, 0), (5, 1, 1)]:
        layers[f"input_blocks.{n}.0"] = ours.down[i].blocks[j]
    for n, i, j in [(0, 0, 0), (1, 0, 1), (2, 0, 2), (3, 1, 0), (4, 1, 1), (5, 1, 2)]:
        layers[f"output_blocks.{n}.0"] = ours.up[i].blocks[j]
    layers |= {f"input_blocks.{4 + j}.1": ours.down[1].attentions[j] for j in range(2)}
    layers |= {f"output_blocks.{j}.1": ours.up[0].attentions[j] for j in range(3)}
    layers |= {"input_blocks.3.0": ours.down[0].resample, "output_blocks.2.2": ours.up[0].resample}
    errors = {}
    for name, layer in layers.items():
        (x, *embedding), expected = calls[name]
        errors[name] = relative_error(nchw(layer(nhwc(x), *(jnp.asarray(e) for e in embedding))), expected)
    assert max(errors.values()) < 1e-5, errors


def test_base_network_has_the_reference_names():
    """Every parameter of the base config has its own name; spot checks where the numbering changes."""
    config = UNetConfig()
    shapes = split(abstract(UNet, config))[1]
    names = {spell(REFERENCE_UNET, config, path)[0]: shape.size for path, shape in shapes.items()}
    assert len(names) == len(shapes)
    assert sum(names.values()) == 305_806_340
    for name in (
        "input_blocks.4.0.op.weight",
        "input_blocks.13.1.qkv.bias",
        "input_blocks.15.0.out_layers.3.weight",
        "output_blocks.3.2.conv.weight",
        "output_blocks.7.1.conv.weight",
        "output_blocks.15.0.skip_connection.weight",
    ):
        assert name in names
    assert "output_blocks.15.1.conv.weight" not in names


def checkpoint(path, config: UNetConfig, **changes) -> Twin:
    """A training checkpoint as the reference writes them, with online weights of seed 1 and EMA of seed 2."""
    online, ema = randomised(Twin(config), 1), randomised(Twin(config), 2)
    content = {
        "epoch": 3,
        "state_dict": {
            **{f"model.net.{name}": value for name, value in online.state_dict().items()},
            **{f"ema_model.ema_model.net.{name}": value for name, value in ema.state_dict().items()},
            "ema_model.step": torch.tensor(4321),
            "ema_model.initted": torch.tensor(True),
            "first_stage.quant_conv.bias": torch.zeros(8),
        },
        "hyper_parameters": {"fm_cfg": {"params": {"net_cfg": {"params": dict(SMALL)}}}},
    }
    torch.save({**content, **changes}, path)
    return online, ema


def test_training_checkpoint(tmp_path):
    path = str(tmp_path / "last.ckpt")
    config = unet_config(SMALL)
    online, ema = checkpoint(path, config)
    assert load_lightning(path).config == config
    assert config.attention_layout == "interleaved"
    assert same(state_dict(load_lightning(path)), ema.state_dict())
    assert same(state_dict(load_lightning(path, ema=False)), online.state_dict())


def test_training_checkpoint_without_config_or_weights(tmp_path):
    path = str(tmp_path / "last.ckpt")
    _, ema = checkpoint(path, unet_config(SMALL), hyper_parameters={})
    with pytest.raises(InputError, match="it has no network arguments"):
        load_lightning(path)
    assert same(state_dict(load_lightning(path, config=SMALL)), ema.state_dict())
    checkpoint(path, unet_config(SMALL), state_dict={"model.net.out.0.bias": torch.zeros(32)})
    with pytest.raises(InputError, match="saved without EMA"):
        load_lightning(path)
    torch.save({"weights": 1}, path)
    with pytest.raises(InputError, match="with a state_dict, found none"):
        load_lightning(path)


def test_one_error_lists_all_keys_that_do_not_fit():
    weights = state_dict(random_model(UNet, UNetConfig(**SMALL)))
    del weights["time_embed.2.bias"], weights["out.0.weight"]
    weights |= {"extra.weight": np.zeros(3), "out.2.weight": np.zeros((4, 32, 1, 1)), "out.2.bias": np.zeros(4, int)}
    with pytest.raises(InputError) as error:
        load_unet(weights, SMALL)
    message = str(error.value)
    assert "missing keys (2)" in message
    assert "time_embed.2.bias" in message
    assert "out.0.weight" in message
    assert "unexpected keys (1): extra.weight" in message
    assert "size mismatch (1)" in message
    assert "out.2.weight expected (4, 32, 3, 3) found (4, 32, 1, 1)" in message
    assert "not floats (1): out.2.bias is int64" in message
    assert "\n" not in message


def test_half_precision_weights_become_float32():
    weights = state_dict(random_model(UNet, UNetConfig(**SMALL)))
    rough = {name: torch.tensor(value).bfloat16() for name, value in weights.items()}
    found = state_dict(load_unet(rough, SMALL))
    assert same(found, {name: tensor.float() for name, tensor in rough.items()})


def test_unknown_network_argument():
    with pytest.raises(InputError, match="unknown fields depth"):
        unet_config({**SMALL, "depth": 3})
