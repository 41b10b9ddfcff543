"""Bundles: fields of config.json, read and written without a training run."""

import copy
import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmboost_jax.boosting.bundle import BundleConfig, read_bundle, write_bundle
from fmboost_jax.errors import InputError
from fmboost_jax.flow.coupling import Coupling
from fmboost_jax.models.first_stage import LatentSpec, LatentStatistics
from fmboost_jax.models.networks import NETWORKS, NetworkKind
from fmboost_jax.models.parameters import split
from fmboost_jax.models.unet import UNet, UNetConfig
from tests.random_models import random_model

UNET = UNetConfig(in_channels=6, out_channels=3, model_channels=32, channel_mult=(1,), num_res_blocks=1, dim_head=16)
CONFIG = BundleConfig(UNET, Coupling(), "linear", 2, 16, 32, LatentSpec("identity", "", 3, 1, 1.0, 0.0), 7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    write_bundle(folder, split(random_model(UNet, UNET))[1], CONFIG)
    return folder


def _places(fields: dict, before: tuple[str, ...] = ()):
    for name, value in fields.items():
        yield (*before, name)
        if isinstance(value, dict):
            yield from _places(value, (*before, name))


def test_what_is_written_is_read(folder):
    parameters, config = read_bundle(folder)
    assert config == CONFIG
    np.testing.assert_array_equal(parameters["conv_in.bias"], split(random_model(UNet, UNET))[1]["conv_in.bias"])


def test_a_mode_of_the_context_is_kept_and_named_only_where_it_is_set(folder, tmp_path):
    assert "context_mode" not in json.loads((folder / "config.json").read_text())["source"]
    source = Coupling(upsampling="lsu", mode="noise", context_mode="nearest")
    config = dataclasses.replace(CONFIG, source=source)
    write_bundle(tmp_path, split(random_model(UNet, UNET))[1], config)
    assert read_bundle(tmp_path)[1] == config
    assert "lsu (x0 noise, context nearest)" in (tmp_path / "README.md").read_text()


def test_steps_of_decoder_inversion_are_kept_and_named_only_where_there_are_any(folder, tmp_path):
    assert "inversion_steps" not in json.loads((folder / "config.json").read_text())["latents"]
    config = dataclasses.replace(CONFIG, latents=dataclasses.replace(CONFIG.latents, inversion_steps=1))
    write_bundle(tmp_path, split(random_model(UNet, UNET))[1], config)
    assert read_bundle(tmp_path)[1] == config
    assert "1 step of decoder inversion" in (tmp_path / "README.md").read_text()


def test_the_recommended_consistency_is_kept_and_named_only_where_there_is_any(folder, tmp_path):
    assert "consistency" not in json.loads((folder / "config.json").read_text())
    config = dataclasses.replace(CONFIG, consistency=0.5)
    write_bundle(tmp_path, split(random_model(UNet, UNET))[1], config)
    assert read_bundle(tmp_path)[1] == config
    with pytest.raises(InputError, match="consistency must be 0 to 1, found 2"):
        dataclasses.replace(CONFIG, consistency=2.0)


def test_statistics_of_the_latents_are_kept(folder, tmp_path):
    assert "statistics" not in json.loads((folder / "config.json").read_text())
    config = dataclasses.replace(CONFIG, statistics=LatentStatistics((0.0, 0.5, -1.0), (1.0, 2.0, 0.25)))
    write_bundle(tmp_path, split(random_model(UNet, UNET))[1], config)
    assert read_bundle(tmp_path)[1] == config
    with pytest.raises(InputError, match="expected those of 3 channels, found 1"):
        dataclasses.replace(CONFIG, statistics=LatentStatistics((0.0,), (1.0,)))


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_field_of_another_type_is_named(folder, data, tmp_path_factory):
    fields = json.loads((folder / "config.json").read_text())
    *path, name = data.draw(st.sampled_from([place for place in _places(fields) if place != ("format",)]))
    damaged = copy.deepcopy(fields)
    holder = damaged
    for part in path:
        holder = holder[part]
    others = [value for value in (None, "text", 3, 0.5, True, [1.5], {"a": 1}) if type(value) is not type(holder[name])]
    if type(holder[name]) is float:
        others.remove(3)
    if name == "normalized":  # null says that it is not known
        others.remove(True)
    holder[name] = data.draw(st.sampled_from(others))
    place = tmp_path_factory.mktemp("damaged")
    (place / "unet.safetensors").symlink_to(folder / "unet.safetensors")
    (place / "config.json").write_text(json.dumps(damaged))
    with pytest.raises(InputError, match=name) as raised:
        read_bundle(place)
    assert "\n" not in str(raised.value)


@dataclasses.dataclass(frozen=True)
class OtherConfig(UNetConfig):
    """Settings of a network that another file adds."""


def test_a_bundle_holds_any_network_of_the_table(tmp_path, monkeypatch):
    monkeypatch.setitem(NETWORKS, "other", NetworkKind(OtherConfig, UNet))
    other = OtherConfig(**dataclasses.asdict(UNET))
    config = dataclasses.replace(CONFIG, architecture=other, network="other")
    write_bundle(tmp_path, split(random_model(UNet, UNET))[1], config)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["network"] == "other"
    assert "unet" not in written
    assert read_bundle(tmp_path)[1] == config
