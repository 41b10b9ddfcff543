"""Weights of other projects: shards, 8-bit floats, wrapped names, checkpoints, unusual folders and configs."""

import argparse
import collections
import datetime
import gzip
import json
import struct
import types
import warnings
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from fmboost_jax.convert import to_autoencoder
from fmboost_jax.errors import InputError
from fmboost_jax.interop import load_autoencoder_kl, load_model, state_dict
from fmboost_jax.interop.autoencoder_configs import inferred_arguments, kl_config
from fmboost_jax.interop.autoencoders import load_first_stage
from fmboost_jax.interop.safetensors_file import read_safetensors
from fmboost_jax.interop.torch_file import read_torch_file
from fmboost_jax.interop.weights import choose_weights, part_of, read_state_dict
from fmboost_jax.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from fmboost_jax.models.autoencoder_tiny import AutoencoderTinyConfig
from fmboost_jax.models.unet import UNetConfig
from tests.random_models import random_model

KL = AutoencoderKLConfig(channels=(8, 16), blocks=1, norm_groups=8)
DIFFUSERS = {"block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 8, "latent_channels": 4}
DDCONFIG = {"ch": 8, "ch_mult": [1, 2], "num_res_blocks": 1, "z_channels": 4, "norm_num_groups": 8}
DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int64,
    torch.uint8,
    torch.bool,
]


@pytest.fixture(scope="module")
def kl() -> AutoencoderKL:
    return random_model(AutoencoderKL, KL)


@pytest.fixture(scope="module")
def weights(kl) -> dict[str, np.ndarray]:
    return state_dict(kl, "diffusers")


def same(found, expected) -> bool:
    """The same names with the same bits."""
    return found.keys() == expected.keys() and all(np.array_equal(found[k], np.asarray(expected[k])) for k in found)


def tensors_of(weights):
    return {name: torch.tensor(value) for name, value in weights.items()}


@settings(max_examples=30, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=4), min_size=1, max_size=4),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 100),
)
def test_safetensors_of_every_type_are_read_bit_for_bit(tmp_path_factory, shapes, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    tensors = {str(i): (torch.randn(shape, generator=generator) * 9).to(dtype) for i, shape in enumerate(shapes)}
    path = tmp_path_factory.mktemp("safetensors") / "x.safetensors"
    save_torch(tensors, path)
    found = read_safetensors(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].shape == tuple(tensor.shape)
        assert found[name].dtype.name == str(dtype).removeprefix("torch.")
        assert found[name].tobytes() == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def header(**tensors) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a whole safetensors file"),
        (b"\xff" * 8 + b"{}", "not a whole safetensors file"),
        (header(a={"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}), "truncated"),
        (header(a={"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 8]}) + bytes(8), "does not fit"),
        (header(a={"dtype": "F32", "shape": [-2, -1], "data_offsets": [0, 8]}) + bytes(8), "does not fit"),
        (header(a={"dtype": "F32", "shape": [0, 2**70], "data_offsets": [0, 0]}), "no array has its shape"),
        (header(a={"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}) + bytes(1), "dtype F4, expected"),
        (header(a={"dtype": "F32", "data_offsets": [0, 8]}) + bytes(8), "missing fields shape"),
        (header(a=3), "damaged"),
        (header() + bytes(8), "its tensors have 0 bytes, the file 8"),
        (struct.pack("<Q", 200_000) + b"[" * 200_000, "its header is damaged"),
        (struct.pack("<Q", 4) + b'"\xff" ', "its header is damaged"),
    ],
)
def test_damaged_safetensors(tmp_path, content, message):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_safetensors(tmp_path / "x.safetensors")
    assert "\n" not in str(caught.value)
    assert str(caught.value).count("fetch it again") <= 1


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_shards_are_read_together(tmp_path, weights, suffix, variant):
    names = list(weights)
    files = [f"diffusion_pytorch_model{variant}-0000{i}-of-00002.{suffix}" for i in (1, 2)]
    places = {name: files[i % 2] for i, name in enumerate(names)}
    for file in files:
        part = {name: weights[name] for name in names if places[name] == file}
        if suffix == "bin":
            torch.save(tensors_of(part), tmp_path / file)
        else:
            save_file(part, tmp_path / file)
    index = tmp_path / f"diffusion_pytorch_model.{suffix}.index{variant}.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    chosen = choose_weights([path.name for path in tmp_path.iterdir()], "folder")
    assert chosen == [index.name, *files]
    assert same(read_state_dict(str(index)), weights)
    if not variant:
        assert same(read_state_dict(str(tmp_path / files[0])), weights)
    index.write_text(json.dumps({"weight_map": {**places, "absent.weight": files[0]}}))
    with pytest.raises(InputError, match=r"its shards lack absent\.weight"):
        read_state_dict(str(index))
    (tmp_path / files[1]).unlink()
    with pytest.raises(InputError, match=r"its shard .* is missing"):
        read_state_dict(str(index))


@pytest.mark.parametrize("content", [{}, {"weight_map": {"a": 3}}, {"weight_map": {"a": "../a.safetensors"}}])
def test_damaged_indices_are_refused(tmp_path, content):
    (tmp_path / "x.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"expected a weight_map|expected names of files beside it"):
        read_state_dict(str(tmp_path / "x.safetensors.index.json"))


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "vae.", "first_stage_model.", "vae.module.", "a.b."])
@pytest.mark.parametrize("section", [(), ("state_dict",), ("model",), ("model_state_dict",), ("state_dict", "model")])
def test_prefixes_and_sections(tmp_path, prefix, section):
    tensors = {"encoder.conv_in.weight": torch.ones(2), "decoder.up_blocks.0.bias": torch.arange(3.0)}
    content = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    for name in reversed(section):
        content = {name: content, "optimizer": {"state": [], "lr": 0.1}, "epoch": 3}
    torch.save(content, tmp_path / "x.pt")
    found = part_of(read_state_dict(str(tmp_path / "x.pt")), "encoder.conv_in.weight", "x.pt")
    assert same(found, tensors)


def test_wrappers_inside_names_and_two_models_of_one_name(tmp_path):
    torch.save({"encoder._orig_mod.conv_in.weight": torch.ones(1)}, tmp_path / "x.pt")
    assert list(read_state_dict(str(tmp_path / "x.pt"))) == ["encoder.conv_in.weight"]
    torch.save({"a": torch.ones(1), "module.a": torch.zeros(1)}, tmp_path / "x.pt")
    with pytest.raises(InputError, match="holds a model twice"):
        read_state_dict(str(tmp_path / "x.pt"))
    with pytest.raises(InputError, match=r"several models fit, under ema\., model\."):
        part_of({"model.encoder.w": np.ones(1), "ema.encoder.w": np.ones(1)}, "encoder.w", "x.pt")


@pytest.mark.parametrize("names", ["diffusers", "old_diffusers"])
def test_a_single_file_of_diffusers_names_gives_the_architecture(tmp_path, names):
    model = random_model(AutoencoderKL, AutoencoderKLConfig(channels=(32, 64), blocks=1))
    weights = state_dict(model, names)
    assert kl_config(inferred_arguments(weights), quant_convs=True, dtype="float32") == model.config
    if names == "diffusers":
        save_file({f"vae.{name}": value for name, value in weights.items()}, tmp_path / "x.safetensors")
        assert same(state_dict(load_first_stage("kl", str(tmp_path / "x.safetensors")).model), weights)


def test_folder_of_8_bit_floats_with_a_config_of_another_encoding(tmp_path, weights):
    eight = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in tensors_of(weights).items()}
    save_torch(eight, tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    (tmp_path / "config.json").write_bytes(json.dumps(DIFFUSERS).encode("utf-16"))
    stage = load_first_stage("kl", str(tmp_path))
    assert same(state_dict(stage.model), {name: tensor.float() for name, tensor in eight.items()})


@pytest.fixture(scope="module")
def alone() -> dict[str, np.ndarray]:
    return state_dict(random_model(AutoencoderKL, AutoencoderKLConfig(channels=(32,), blocks=1)), "compvis")


@pytest.mark.parametrize("prefix", ["", "vae."])
@pytest.mark.parametrize("scale_name", ["scale_weight", "weight_scale"])
def test_scaled_8_bit_weights_of_comfyui(tmp_path, weights, prefix, scale_name):
    """x.weight · x.scale_weight for some of the layers; scales of activations have no effect."""
    tensors, expected = {}, {}
    for index, (name, value) in enumerate(weights.items()):
        tensors[prefix + name] = expected[name] = torch.tensor(value)
        layer, _, kind = name.rpartition(".")
        if kind == "weight" and index % 3:
            scale = torch.tensor(0.25 + index, dtype=torch.float32)
            tensors[prefix + name] = eight = (torch.tensor(value) / scale).to(torch.float8_e4m3fn)
            tensors[f"{prefix}{layer}.{scale_name}"] = scale.reshape([1] * (index % 2))
            tensors[f"{prefix}{layer}.scale_input"] = torch.ones(())
            expected[name] = eight.float() * scale
    tensors[f"{prefix}scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    save_torch(tensors, tmp_path / "x.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(DIFFUSERS))
    assert same(state_dict(load_first_stage("kl", str(tmp_path)).model), expected)


@pytest.mark.parametrize(
    "tensors",
    [
        {"a.weight_scale": np.ones((2, 2)), "a.weight": np.zeros((2, 2), np.uint8)},
        {"a.weight_scale": np.ones(2), "a.weight": np.zeros((2, 2), ml_dtypes.float8_e4m3fn)},
        {"a.scale_weight": np.ones(1), "a.weight": np.zeros((2, 2), np.float16)},
        {"a.scale_weight": np.ones(1)},
        {"a.comfy_quant": np.zeros(9, np.uint8), "a.weight": np.zeros((2, 2), ml_dtypes.float8_e4m3fn)},
    ],
)
def test_other_quantisations_are_refused(tmp_path, tensors):
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(
        InputError, match=r"x\.safetensors: (a\..* goes with .*expected an 8-bit|quantised without one)"
    ):
        read_state_dict(str(tmp_path / "x.safetensors"))


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize(
    ("name", "shape", "scale"),
    [
        ("cond_stage_model.a", 1, 0.18215),
        ("conditioner.embedders.0.a", 1, 0.13025),
        ("model.diffusion_model.out.2.bias", 1, 0.18215),
        ("model.diffusion_model.label_emb.0.0.weight", (1, 2816), 0.13025),
        ("model.diffusion_model.label_emb.0.0.weight", (1, 1536), 0.18215),  # SD 2.1 unCLIP
    ],
)
def test_the_scale_of_a_whole_checkpoint(tmp_path, alone, name, shape, scale):
    tensors = {f"first_stage_model.{name}": value for name, value in alone.items()}
    save_file({**tensors, name: np.zeros(shape, np.float32)}, tmp_path / "sdxl.safetensors")
    assert load_first_stage("kl", str(tmp_path / "sdxl.safetensors")).spec.scaling_factor == scale


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize(
    ("architecture", "scale"), [("stable-diffusion-xl-v1-base/vae", 0.13025), ("stable-diffusion-v1/vae", 0.18215)]
)
def test_the_scale_by_the_metadata_of_a_file(tmp_path, alone, architecture, scale):
    save_file(alone, tmp_path / "x.safetensors", {"modelspec.architecture": architecture})
    assert load_first_stage("kl", str(tmp_path / "x.safetensors")).spec.scaling_factor == scale


@pytest.mark.parametrize(
    ("name", "scale", "other"),
    [("vae.safetensors", 0.18215, 0.13025), ("sdxl_vae.safetensors", 0.13025, 0.18215), ("x.pt", 0.18215, 0.13025)],
)
def test_a_scale_that_nothing_shows_gives_a_warning_and_can_be_chosen(tmp_path, alone, name, scale, other):
    if name.endswith(".pt"):
        torch.save({key: torch.tensor(value) for key, value in alone.items()}, tmp_path / name)
    else:
        save_file(alone, tmp_path / name)
    with pytest.warns(UserWarning, match=r"0\.18215 \(Stable Diffusion 1 and 2\) or 0\.13025 \(SDXL\)") as caught:
        assert load_first_stage("kl", str(tmp_path / name)).spec.scaling_factor == scale
    (line,) = {str(warning.message) for warning in caught if warning.category is UserWarning}
    advice = line.partition("put a config.json beside it: ")[2]
    assert json.loads(advice) == {"scaling_factor": other}
    (tmp_path / "config.json").write_text(advice)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert load_first_stage("kl", str(tmp_path / name)).spec.scaling_factor == other


def test_group_counts(kl, weights):
    assert load_autoencoder_kl(weights, DIFFUSERS).config == KL
    assert load_autoencoder_kl(state_dict(kl, "compvis"), DDCONFIG).config == KL
    with pytest.raises(InputError, match=r"multiples of its 32 norm groups"):
        load_autoencoder_kl(weights, {**DIFFUSERS, "norm_num_groups": 32})


def test_group_counts_that_another_project_does_not_have_are_not_written(tmp_path, weights):
    (tmp_path / "config.json").write_text(json.dumps(DIFFUSERS))
    save_file(weights, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=r"8 groups, and CompVis' code has 32"):
        to_autoencoder("kl", str(tmp_path), str(tmp_path / "y.safetensors"), names="compvis")


def test_two_files_of_weights_in_a_folder_are_refused(tmp_path, weights):
    (tmp_path / "config.json").write_text(json.dumps(DIFFUSERS))
    save_file(weights, tmp_path / "b.safetensors")
    assert same(state_dict(load_first_stage("kl", str(tmp_path)).model), weights)
    save_file(weights, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"several files of weights, a\.safetensors, b\.safetensors; name one"):
        load_first_stage("kl", str(tmp_path))
    assert same(state_dict(load_first_stage("kl", str(tmp_path / "b.safetensors")).model), weights)


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "bin"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "a Git LFS pointer.*git lfs pull"),
        (b"<!DOCTYPE html>\n<html>", "a web page"),
        (b"", "not a whole safetensors|another format"),
    ],
)
def test_pointers_and_web_pages_are_refused(tmp_path, suffix, content, message):
    (tmp_path / f"x.{suffix}").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_state_dict(str(tmp_path / f"x.{suffix}"))


def test_the_content_decides_the_format(tmp_path, weights):
    save_file(weights, tmp_path / "x.pth")
    torch.save(tensors_of(weights), tmp_path / "y.safetensors")
    assert same(read_state_dict(str(tmp_path / "x.pth")), weights)
    assert same(read_state_dict(str(tmp_path / "y.safetensors")), weights)


ABSURD = [10**9, 10**400, -1, 0, "4", None, 1.5, [3], {}, True]


@pytest.mark.parametrize("value", ABSURD, ids=lambda value: str(value)[:6])
@pytest.mark.parametrize("field", [*DIFFUSERS, "in_channels", "ch", "ch_mult", "num_res_blocks", "z_channels"])
def test_absurd_numbers_in_a_config_are_refused(weights, field, value):
    base = DIFFUSERS if field in DIFFUSERS or field == "in_channels" else DDCONFIG
    values = [value] if value != [3] and isinstance(base.get(field), list) else value
    for changed in (value, values):
        with pytest.raises(InputError) as caught:
            load_autoencoder_kl(weights, {**base, field: changed})
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: AutoencoderKLConfig(channels=(32,) * 100_000),
        lambda: AutoencoderKLConfig(blocks=10**6),
        lambda: AutoencoderTinyConfig(encoder_blocks=(10**6,), decoder_blocks=(10**6,)),
        lambda: AutoencoderTinyConfig(width=0),
        lambda: UNetConfig(num_res_blocks=10**6),
        lambda: UNetConfig(channel_mult=(1,) * 1000),
        lambda: UNetConfig(model_channels=32 * 10**9),
    ],
)
def test_huge_networks_are_refused_before_they_are_built(make):
    with pytest.raises(InputError, match="expected"):
        make()


@pytest.mark.parametrize(
    "config", ["[" * 100_000, '{"model": %s}' % ("9" * 5000), '{"model": []}', "[]", '{"model": 1}']
)
def test_a_damaged_config_of_this_package_is_refused(tmp_path, config):
    (tmp_path / "parameters").mkdir()
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(InputError, match=r"config\.json"):
        load_model(str(tmp_path))


def test_harmless_objects_beside_the_tensors_are_skipped(tmp_path):
    beside = {
        "scalar": np.float64(3),
        "array": np.arange(3),
        "namespace": argparse.Namespace(lr=1e-4),
        "simple": types.SimpleNamespace(a=1),
        "when": datetime.datetime(2024, 1, 1),
        "sets": [{1, 2}, frozenset((3,)), bytearray(b"x"), range(3), 1j, slice(1, 2)],
        "device": torch.device("cpu"),
        "dtype": torch.float16,
        "counter": collections.Counter("ab"),
    }
    weights = {"a": torch.ones(2), "parameter": torch.nn.Parameter(torch.ones(1))}
    weights["parameter"].note = "an attribute makes PyTorch write it another way"
    for zipped in (True, False):
        torch.save({"state_dict": weights, **beside}, tmp_path / "x.ckpt", _use_new_zipfile_serialization=zipped)
        assert same(read_state_dict(str(tmp_path / "x.ckpt")), {"a": np.ones(2), "parameter": np.ones(1)})


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.complex64])
def test_types_without_a_storage_of_their_own(tmp_path, dtype):
    tensor = torch.arange(6).reshape(2, 3).to(dtype)
    torch.save({"a": tensor, "row": tensor[1]}, tmp_path / "x.pth")
    found = read_torch_file(str(tmp_path / "x.pth"))
    assert found["a"].dtype.name == str(dtype).removeprefix("torch.")
    assert found["a"].shape == (2, 3)
    assert found["row"].tobytes() == tensor[1].clone().view(torch.uint8).numpy().tobytes()


def test_archive_bombs_are_refused_before_they_are_unpacked(tmp_path):
    torch.save({"a": torch.zeros(3)}, tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth") as old, zipfile.ZipFile(tmp_path / "y.pth", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name), zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match="a compressed archive"):
        read_torch_file(str(tmp_path / "y.pth"))
    (tmp_path / "z.pth").write_bytes(gzip.compress(bytes(10**7)))
    with pytest.raises(InputError, match="gzipped by more than 100"):
        read_torch_file(str(tmp_path / "z.pth"))
