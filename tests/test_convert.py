"""The convert command, from other projects' files to this package's and back, bit for bit; its messages."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from fmboost_jax import convert
from fmboost_jax.boosting.booster import Booster
from fmboost_jax.errors import InputError, run
from fmboost_jax.interop import load_model, state_dict, unet_config
from fmboost_jax.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from fmboost_jax.models.autoencoder_tiny import AutoencoderTiny, AutoencoderTinyConfig
from fmboost_jax.training.checkpoints import load_weights
from tests.commands import PIXELS
from tests.random_models import random_model
from tests.torch_reference import randomised
from tests.torch_reference.unet import UNet as Twin

NETWORK = {
    "in_channels": 6,
    "model_channels": 32,
    "out_channels": 3,
    "num_res_blocks": 1,
    "channel_mult": [1, 2],
    "attention_resolutions": [2],
    "dim_head": 16,
    "num_heads": 2,
}
CONFIG = ["--config", "configs/demo.py", *PIXELS, "--config.data.high_res=64", "--config.data.low_res=32"]


@pytest.fixture
def reference(tmp_path):
    """A training checkpoint of the reference, and its online and averaged networks."""
    online, ema = (randomised(Twin(unet_config(NETWORK)), seed) for seed in (1, 2))
    tensors = {f"model.net.{name}": value for name, value in online.state_dict().items()}
    tensors |= {f"ema_model.ema_model.net.{name}": value for name, value in ema.state_dict().items()}
    arguments = {"fm_cfg": {"params": {"net_cfg": {"params": NETWORK}}}}
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": tensors, "global_step": 4321, "hyper_parameters": arguments}, path)
    return str(path), online, ema


def same(found, expected) -> bool:
    """The same names with the same bits."""
    return found.keys() == expected.keys() and all(np.array_equal(found[k], np.asarray(expected[k])) for k in found)


def test_reference_checkpoint_there_and_back(tmp_path, reference, capsys):
    path, online, ema = reference
    out = str(tmp_path / "run")
    convert.main(["from-reference", path, out, *CONFIG])
    assert "step 4,321" in capsys.readouterr().out
    for flags, twin in (([], ema), (["--online"], online)):
        file = str(tmp_path / f"back{len(flags)}.safetensors")
        convert.main(["to-reference", out, file, *flags])
        assert same(load_file(file), twin.state_dict())


def test_converted_checkpoint_boosts(tmp_path, reference):
    """The network that a booster runs is the reference's: one Euler step from t = 0 is x0 + velocity."""
    path, _, ema = reference
    convert.main(["from-reference", path, str(tmp_path / "run"), *CONFIG])
    booster = Booster.load(str(tmp_path / "run"))
    assert booster.network_config == unet_config(NETWORK)
    assert booster.factor == 2
    parameters, config, step = load_weights(str(tmp_path / "run"))
    assert step == 4321
    assert config["unet"]["attention_layout"] == "interleaved"
    unet = convert.merge(convert.split(convert.abstract(convert.UNet, booster.network_config))[0], parameters)
    x = torch.randn((1, 6, 8, 8), generator=torch.Generator().manual_seed(0))
    state, context = (jnp.asarray(part.permute(0, 2, 3, 1).numpy()) for part in x.chunk(2, dim=1))
    expected = ema(x[:, :3], torch.zeros(1), x[:, 3:]).permute(0, 2, 3, 1)
    np.testing.assert_allclose(unet(state, jnp.zeros(1), context), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("weights", ["online", "ema"])
def test_online_weights_or_averaged_ones_fill_both_parts(tmp_path, reference, weights):
    path, online, ema = reference
    out = str(tmp_path / "run")
    convert.main(["from-reference", path, out, *CONFIG, "--weights", weights])
    for flags in ([], ["--online"]):
        file = str(tmp_path / f"back{len(flags)}.safetensors")
        convert.main(["to-reference", out, file, *flags])
        assert same(load_file(file), {"online": online, "ema": ema}[weights].state_dict())


def test_bare_state_dict(tmp_path, reference):
    _, _, ema = reference
    save_file({name: tensor.numpy() for name, tensor in ema.state_dict().items()}, tmp_path / "a.safetensors")
    words = ["from-reference", str(tmp_path / "a.safetensors"), str(tmp_path / "run"), *CONFIG]
    with pytest.raises(InputError, match="give their JSON file"):
        convert.main(words)
    (tmp_path / "network.json").write_text(json.dumps(NETWORK))
    convert.main([*words, "--network", str(tmp_path / "network.json")])
    convert.main(["to-reference", str(tmp_path / "run"), str(tmp_path / "b.safetensors")])
    assert same(load_file(tmp_path / "b.safetensors"), ema.state_dict())


def test_networks_of_the_other_attention_layout_are_refused_both_ways(tmp_path, reference):
    path, _, ema = reference
    (tmp_path / "network.json").write_text(json.dumps({**NETWORK, "attention_layout": "heads"}))
    words = [str(tmp_path / "run"), *CONFIG, "--network", str(tmp_path / "network.json")]
    with pytest.raises(InputError, match='trained with attention_layout "interleaved", the config has "heads"'):
        convert.main(["from-reference", path, *words])
    # A bare state dict does not say who trained it: one of this package may have "heads".
    save_file({name: tensor.numpy() for name, tensor in ema.state_dict().items()}, tmp_path / "a.safetensors")
    convert.main(["from-reference", str(tmp_path / "a.safetensors"), *words])
    with pytest.raises(InputError, match=r'attention_layout is "heads".*interleaved'):
        convert.main(["to-reference", str(tmp_path / "run"), str(tmp_path / "b.safetensors")])


@pytest.mark.parametrize(
    ("kind", "model"),
    [
        ("kl", (AutoencoderKL, AutoencoderKLConfig(channels=(32, 64), blocks=1))),
        ("tiny", (AutoencoderTiny, AutoencoderTinyConfig(width=8, encoder_blocks=(1, 1), decoder_blocks=(1, 1)))),
    ],
)
def test_autoencoder_there_and_back(tmp_path, kind, model):
    cls, config = model
    weights = state_dict(random_model(cls, config), {"kl": "compvis", "tiny": "diffusers"}[kind])
    source, out, back = (str(tmp_path / name) for name in ("a.safetensors", "out", "b.safetensors"))
    save_file(weights, source)
    convert.main(["from-autoencoder", kind, source, out, "--scaling-factor=0.13025"])
    loaded = load_model(out).config
    assert (loaded.scaling_factor, loaded.channels if kind == "kl" else loaded.width) == (
        0.13025,
        config.channels if kind == "kl" else config.width,
    )
    convert.main(["to-autoencoder", kind, out, back, "--names", {"kl": "compvis", "tiny": "diffusers"}[kind]])
    assert same(load_file(back), weights)
    with pytest.raises(InputError, match="weight names 'nobody'"):
        convert.main(["to-autoencoder", kind, out, str(tmp_path / "c.safetensors"), "--names", "nobody"])


def test_nothing_is_overwritten(tmp_path, reference):
    path, _, _ = reference
    (tmp_path / "there").write_text("precious")
    for words in (
        ["from-reference", path, str(tmp_path / "there"), *CONFIG],
        ["from-autoencoder", "tiny", path, str(tmp_path / "there")],
    ):
        with pytest.raises(InputError):
            convert.main(words)
    convert.main(["from-reference", path, str(tmp_path / "run"), *CONFIG])
    with pytest.raises(InputError, match="exists already"):
        convert.main(["to-reference", str(tmp_path / "run"), str(tmp_path / "there")])
    assert (tmp_path / "there").read_text() == "precious"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["from-reference", "absent.ckpt", "out", *CONFIG], "absent.ckpt: cannot be read"),
        (["from-reference", "absent.ckpt", "out", "--config", "absent.py"], "absent.py' does not exist"),
        (["to-reference", "absent", "out.safetensors"], "no checkpoint in"),
        (["to-reference", "absent", "out.safetensors", "--ema"], "unknown argument '--ema'"),
        (["from-autoencoder", "kl", "./absent", "out"], "./absent: no such folder or file"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        run(lambda: convert.main(words))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("words", [["--help"], ["from-reference", "--help"], ["to-autoencoder", "--help"]])
def test_help_has_examples(words, capsys):
    with pytest.raises(SystemExit):
        convert.main(words)
    assert "fmboost_jax.convert " in capsys.readouterr().out
