"""First stages from every kind of folder and file, conversion back, bad input."""

import dataclasses
import json
import os
import sys
import types

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from fmboost_jax.errors import InputError
from fmboost_jax.interop import (
    load_autoencoder_kl,
    load_autoencoder_tiny,
    load_model,
    save_model,
    state_dict,
)
from fmboost_jax.interop.autoencoders import load_first_stage
from fmboost_jax.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from fmboost_jax.models.autoencoder_tiny import AutoencoderTiny, AutoencoderTinyConfig
from tests.random_models import random_model

KL = AutoencoderKLConfig(channels=(32, 64), blocks=1)
TINY = AutoencoderTinyConfig(width=8, encoder_blocks=(1, 2), decoder_blocks=(2, 1))
DDCONFIG = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 64,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.0,
}


@pytest.fixture(scope="module")
def kl() -> AutoencoderKL:
    return random_model(AutoencoderKL, KL)


@pytest.fixture(scope="module")
def tiny() -> AutoencoderTiny:
    return random_model(AutoencoderTiny, TINY)


def same(found, expected) -> bool:
    """The same names with the same bits."""
    return found.keys() == expected.keys() and all(np.array_equal(found[k], np.asarray(expected[k])) for k in found)


def saved(path, weights) -> str:
    torch.save({name: torch.tensor(value) for name, value in weights.items()}, path)
    return str(path)


@pytest.mark.parametrize("names", ["compvis", "diffusers", "old_diffusers"])
def test_kl_round_trip_is_exact_in_every_format(kl, names):
    weights = state_dict(kl, names)
    again = load_autoencoder_kl(weights, KL)
    assert again.weight_names == names
    assert same(state_dict(again), weights)
    assert same(state_dict(again, "compvis"), state_dict(kl, "compvis"))


def test_formats_name_the_same_layers_differently(kl):
    compvis, diffusers, old = (state_dict(kl, names) for names in ("compvis", "diffusers", "old_diffusers"))
    pairs = {
        "decoder.up.1.block.0.conv1.weight": "decoder.up_blocks.0.resnets.0.conv1.weight",
        "decoder.up.0.block.0.nin_shortcut.weight": "decoder.up_blocks.1.resnets.0.conv_shortcut.weight",
        "decoder.up.1.upsample.conv.bias": "decoder.up_blocks.0.upsamplers.0.conv.bias",
        "encoder.down.0.downsample.conv.weight": "encoder.down_blocks.0.downsamplers.0.conv.weight",
        "decoder.norm_out.weight": "decoder.conv_norm_out.weight",
    }
    for theirs, name in pairs.items():
        np.testing.assert_array_equal(compvis[theirs], diffusers[name])
    query = diffusers["encoder.mid_block.attentions.0.to_q.weight"]
    np.testing.assert_array_equal(compvis["encoder.mid.attn_1.q.weight"][:, :, 0, 0], query)
    np.testing.assert_array_equal(old["encoder.mid_block.attentions.0.query.weight"], query)


def test_ddconfig_and_config_json_give_the_same_config(kl):
    diffusers = {"block_out_channels": [32, 64], "layers_per_block": 1, "latent_channels": 4}
    weights = state_dict(kl, "compvis")
    assert load_autoencoder_kl(weights, DDCONFIG).config == KL
    assert load_autoencoder_kl(weights, diffusers).config == KL


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**DDCONFIG, "attn_resolutions": [32]}, r"attn_resolutions=\[32\]"),
        ({**DDCONFIG, "double_z": False, "attn_type": "linear"}, "double_z=False.*attn_type='linear'"),
        ({"ch_mult": [1, 2]}, "ch, num_res_blocks, z_channels missing"),
        ({"block_out_channels": [32], "_class_name": "VQModel"}, "_class_name='VQModel'"),
        ({"block_out_channels": [32], "down_block_types": ["AttnDownEncoderBlock2D"]}, "AttnDownEncoderBlock2D"),
        ({"depth": 3}, "found depth"),
    ],
)
def test_other_architectures_are_refused(config, message):
    with pytest.raises(InputError, match=message):
        load_autoencoder_kl({}, config)


@pytest.mark.parametrize("place", ["", "vae"])
def test_diffusers_folder_and_pipeline(tmp_path, place):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 64),
        latent_channels=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=0.36,
        shift_factor=0.12,
    )
    theirs.save_pretrained(tmp_path / place)
    stage = load_first_stage("kl", str(tmp_path))
    assert (stage.channels, stage.downsampling) == (16, 2)
    assert (stage.spec.scaling_factor, stage.spec.shift_factor) == (0.36, 0.12)
    assert same(state_dict(stage.model), theirs.state_dict())


def test_files_of_half_precision(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=16,
    ).bfloat16()
    theirs.save_pretrained(tmp_path)
    stage = load_first_stage("tiny", str(tmp_path), dtype="bfloat16")
    assert stage.model.config.dtype == "bfloat16"
    assert same(state_dict(stage.model), {name: tensor.float() for name, tensor in theirs.state_dict().items()})


@pytest.mark.parametrize("prefix", ["", "first_stage_model.", "first_stage."])
def test_compvis_file(tmp_path, kl, prefix):
    weights = state_dict(kl, "compvis")
    content = {f"{prefix}{name}": torch.tensor(value) for name, value in weights.items()}
    content |= {"loss.logvar": torch.zeros(())} if not prefix else {"model.diffusion_model.out.bias": torch.zeros(4)}
    torch.save({"state_dict": content, "global_step": 3}, tmp_path / "model.ckpt")
    stage = load_first_stage("kl", str(tmp_path / "model.ckpt"))
    assert stage.model.config == KL
    assert stage.spec.scaling_factor == 0.18215
    assert same(state_dict(stage.model), weights)


def test_compvis_file_of_sixteen_channels_needs_its_scale(tmp_path):
    config = dataclasses.replace(KL, latent_channels=16, quant_convs=False)
    weights = state_dict(random_model(AutoencoderKL, config), "compvis")
    path = tmp_path / "ae.safetensors"
    save_file(weights, path)
    with pytest.raises(InputError, match=r"16 latent channels.*config\.json"):
        load_first_stage("kl", str(path))
    ddconfig = {**DDCONFIG, "z_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159}
    (tmp_path / "config.json").write_text(json.dumps(ddconfig))
    stage = load_first_stage("kl", str(path))
    assert (stage.spec.scaling_factor, stage.spec.shift_factor) == (0.3611, 0.1159)
    assert same(state_dict(stage.model), weights)


def test_original_pairs_of_files(tmp_path, tiny):
    weights = state_dict(tiny, "taesd")
    for name in ("taesd", "taesdxl"):
        for side in ("encoder", "decoder"):
            part = {k.removeprefix(f"{side}."): v for k, v in weights.items() if k.startswith(side)}
            saved(tmp_path / f"{name}_{side}.pth", part)
    with pytest.raises(InputError, match=r"several autoencoders.*taesd, .*taesdxl"):
        load_first_stage("tiny", str(tmp_path))
    stage = load_first_stage("tiny", str(tmp_path / "taesdxl"))
    assert stage.model.config == TINY
    assert same(state_dict(stage.model), weights)


def test_tiny_single_file(tmp_path, tiny):
    save_file(state_dict(tiny, "diffusers"), tmp_path / "taef2.safetensors")
    stage = load_first_stage("tiny", str(tmp_path / "taef2.safetensors"))
    assert same(state_dict(stage.model), state_dict(tiny, "diffusers"))


def test_tensors_of_another_network_are_refused():
    with pytest.raises(InputError, match="found too few"):
        load_autoencoder_tiny({"encoder.0.weight": np.zeros((8, 3, 3, 3))})


@pytest.mark.parametrize("kind", ["kl", "tiny"])
def test_folders_of_this_package(tmp_path, kl, tiny, kind):
    model = {"kl": kl, "tiny": tiny}[kind]
    save_model(str(tmp_path / "out"), model)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    stage = load_first_stage(kind, str(tmp_path / "out"), dtype="bfloat16")
    assert stage.model.config == dataclasses.replace(model.config, dtype="bfloat16")
    assert same(state_dict(stage.model), state_dict(model))
    other = {"kl": "tiny", "tiny": "kl"}[kind]
    with pytest.raises(InputError, match=f"expected kind '{other}'"):
        load_first_stage(other, str(tmp_path / "out"))
    with pytest.raises(InputError, match="exists already"):
        save_model(str(tmp_path / "out"), model)


def test_damaged_folder_of_this_package(tmp_path, tiny):
    save_model(str(tmp_path / "out"), tiny)
    (tmp_path / "out" / "config.json").write_text('{"model": "Other"}')
    with pytest.raises(InputError, match="does not describe a model of this package"):
        load_model(str(tmp_path / "out"))
    with pytest.raises(InputError, match=r"expected config\.json and parameters/"):
        load_model(str(tmp_path))


class Hub(types.SimpleNamespace):
    """The client of a hub with one repository: its files' names, and what was fetched."""

    def __init__(self, folder, files):
        super().__init__(HfApi=lambda: self, files=files, folder=folder, fetched=[])

    def model_info(self, repository):
        if not self.files:
            raise ConnectionError("no route\nto host")
        return types.SimpleNamespace(siblings=[types.SimpleNamespace(rfilename=name) for name in self.files])

    def snapshot_download(self, repository, allow_patterns=None, local_files_only=False):
        if not os.path.isdir(self.folder):
            raise ConnectionError("not in the cache")
        self.fetched.append((repository, allow_patterns, local_files_only))
        return str(self.folder)


VAE = ["vae/config.json", "vae/diffusion_pytorch_model.safetensors"]
HALF = ["vae/config.json", "vae/diffusion_pytorch_model.fp16.safetensors"]
OTHERS = ["model_index.json", "v1-5.safetensors", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"]


@pytest.mark.parametrize("inner", ["", "/vae"])
@pytest.mark.parametrize("files", [[*VAE, *OTHERS], [*HALF, *OTHERS], sorted({*VAE, *HALF, *OTHERS}), []])
def test_hub_id(tmp_path, monkeypatch, tiny, files, inner):
    """Of a whole pipeline only the autoencoder is fetched, once; later it is read from the cache without the hub."""
    folder = tmp_path / "snapshot" / "vae"
    folder.mkdir(parents=True)
    save_file(state_dict(tiny, "diffusers"), folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text("{}")
    hub = Hub(tmp_path / "snapshot", files)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    stage = load_first_stage("tiny", f"somebody/a-pipeline{inner}")
    wanted = None if not files else VAE if VAE[1] in files else HALF
    assert hub.fetched == [("somebody/a-pipeline", wanted, not files)]
    assert same(state_dict(stage.model), state_dict(tiny, "diffusers"))


def test_an_unreachable_hub_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub(tmp_path / "absent", []))
    with pytest.raises(InputError, match=r"the download from the hub failed \(no route to host\)"):
        load_first_stage("kl", "somebody/model")
    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub(tmp_path, ["README.md", "unet/config.json"]))
    with pytest.raises(InputError, match=r"somebody/model: expected config\.json in vae/ of the repository"):
        load_first_stage("kl", "somebody/model")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match="pip install huggingface_hub"):
        load_first_stage("kl", "somebody/model")


def test_missing_paths_are_one_line(tmp_path):
    with pytest.raises(InputError, match="no such folder or file"):
        load_first_stage("kl", str(tmp_path / "absent"))
    for kind, message in (("kl", "config.json"), ("tiny", "_encoder.pth")):
        with pytest.raises(InputError, match=message):
            load_first_stage(kind, str(tmp_path))
    (tmp_path / "config.json").write_text('{"block_out_channels": [32]}')
    with pytest.raises(InputError, match=r"no \*\.safetensors"):
        load_first_stage("kl", str(tmp_path))
    (tmp_path / "a.safetensors").write_bytes(b"cut")
    with pytest.raises(InputError, match="not a whole safetensors file"):
        load_first_stage("kl", str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json is damaged, expected JSON"):
        load_first_stage("kl", str(tmp_path))
