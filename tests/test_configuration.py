"""Command lines with a config: overrides, variants, refusals; the configs that come with the project."""

import argparse
import dataclasses
import json

import pytest

from fmboost_jax.configuration import (
    SHIPPED,
    changes,
    from_mapping,
    load_config,
    parse_arguments,
    read_config,
    to_mapping,
)
from fmboost_jax.errors import InputError
from fmboost_jax.flow.paths import PATHS, make_path
from fmboost_jax.models.networks import abstract_network
from fmboost_jax.models.parameters import count, split
from fmboost_jax.training.config import TrainingConfig


def test_overrides_keep_the_types_of_the_file():
    overrides = ["--config.optim.lr=1e-4", "--config.unet.channel_mult=(1,2,3)", "--config.data.dir=somewhere"]
    config = load_config("configs/demo.py", overrides)
    assert config.optim.lr == 1e-4
    assert config.unet.channel_mult == (1, 2, 3)
    assert config.data.dir == "somewhere"


def test_the_last_override_of_a_field_counts():
    overrides = ["--config.unet.channel_mult=(1,2)", "--config.seed=1", "--config.unet.channel_mult=(1,)"]
    config = load_config("configs/demo.py", [*overrides, "--config.seed=2"])
    assert (config.unet.channel_mult, config.seed) == ((1,), 2)


def test_arguments_may_come_in_any_order():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out")
    words = ["--config.seed=3", "--out", "there", "--config", "configs/demo.py"]
    arguments, config = parse_arguments(parser, words, TrainingConfig)
    assert arguments.out == "there"
    assert config.seed == 3


def test_an_option_without_a_value_is_refused():
    parser = argparse.ArgumentParser()
    parser.add_argument("--photo-folder")
    with pytest.raises(InputError, match="--photo-folder is empty; give it a value, or leave it out"):
        parse_arguments(parser, ["--config=demo.py", "--photo-folder", ""], TrainingConfig)


@pytest.mark.parametrize(
    ("config", "overrides", "expected"),
    [
        ("configs/none.py", [], "does not exist"),
        ("configs/demo.py", ["--config.optim.lrr=1"], 'Did you mean "lr"'),
        ("configs/demo.py", ["--config.train.steps=1e3"], "1e3"),
        ("configs/demo.py", ["--nonsense"], "--nonsense"),
        ("configs/demo.py", ["nonsense"], "nonsense"),
        ("configs/cfm1024.py:x3", [], "variant 'x3' is unknown; expected one of '', x4"),
        ("configs/demo.py:", ["--config.unet.width=3"], "width"),
    ],
)
def test_refusals_are_one_line(config, overrides, expected):
    with pytest.raises(InputError) as error:
        load_config(config, overrides)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["demo", "demo.py", "configs/demo.py", "{shipped}/demo.py"])
def test_configs_are_found_by_name_from_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = read_config(name.format(shipped=SHIPPED), ["--config.seed=4"], TrainingConfig)
    assert config.seed == 4
    assert config.architecture.channel_mult == (1, 2)


def test_a_users_file_builds_on_others(tmp_path, monkeypatch):
    """Names in a config file are relative to it, or those of shipped configs; each file has its own globals."""
    own = """
from fmboost_jax.configuration import load_config

SEED = {seed}


def get_config(variant=""):
    config = load_config({base!r})
    config.seed = SEED
    config.optim.lr = 1  # a whole number where a float is wanted
    return config
"""
    (tmp_path / "base.py").write_text(own.format(seed=1, base="cfm1024.py:x4"))
    (tmp_path / "own.py").write_text(own.format(seed=2, base="base.py"))
    # Of the same name as a shipped one, in the folder that the command is run in.
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "cfm1024.py").write_text("raise RuntimeError('not this one')")
    monkeypatch.chdir(other)
    config = read_config("../own.py", [], TrainingConfig)
    assert (config.seed, config.data.low_res) == (2, 256)
    assert config.optim.lr == 1.0
    with pytest.raises(InputError, match=r"config cfm1024\.py: not this one"):
        read_config("cfm1024.py", [], TrainingConfig)


def test_extensions_are_imported_before_the_config_is_read(tmp_path):
    """A path from outside the package and its setting are named on the command line."""
    extension = tmp_path / "bent.py"
    extension.write_text(
        "import dataclasses\n"
        "from fmboost_jax.flow.paths import PATHS, LinearPath\n\n\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Bent(LinearPath):\n    bend: float = 0.0\n\n\n"
        "PATHS['bent'] = Bent\n"
    )
    words = ["--config", "demo.py", "--config.path=bent(bend=0.5)"]
    try:
        _, config = parse_arguments(argparse.ArgumentParser(), ["--import", str(extension), *words], TrainingConfig)
        assert make_path(config.path).bend == 0.5
    finally:
        PATHS.pop("bent", None)
    with pytest.raises(InputError, match="path 'bent' is unknown"):
        parse_arguments(argparse.ArgumentParser(), words, TrainingConfig)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr=0.0", "optim.lr is 0.0, expected more than 0"),
        ("optim.lr=nan", "expected optim.lr as float, found nan"),
        ("optim.warmup_steps=-1", "optim.warmup_steps is -1, expected 0 or more"),
        ("optim.accumulate=0", "optim.accumulate is 0"),
        ("optim.b2=1.0", "optim.b2 is 1.0"),
        ("ema.decay=1.0", "ema.decay is 1.0, expected 0 or more and less than 1"),
        ("unet.dropout=1.5", "unet.dropout is 1.5"),
        ("unet.num_res_blocks=0", "unet.num_res_blocks is 0"),
        ("checkpoint.keep=0", "checkpoint.keep is 0"),
        ("train.log_every=0", "train.log_every is 0"),
        ("evaluate.images=0", "evaluate.images is 0"),
        ("evaluate.method=rk5", "evaluate.method is 'rk5', expected one of euler"),
        ("source.mode=cubic", "source.mode is 'cubic', expected one of nearest"),
        ("source.context_mode=cubic", "source.context_mode is 'cubic', expected one of nearest"),
        ("source.context_mode=nearest", "source.context_mode is 'nearest', expected none with data.upsampling="),
        ("source.start=noize", "source.start is 'noize'"),
        ("source.noise_step=1000", "source.noise_step is 1000"),
        ("profile.steps=(3,)", r"profile.steps is \(3,\), expected the first and the last step"),
        ("network=dit", "network 'dit' is unknown; expected one of unet"),
        ("path=cubic", "linear, gvp"),
        ("path=linear(sigma_min=5.0)", "sigma_min is 5.0, expected 0 or more and less than 1"),
        ("seed=-1", "seed is -1, expected 0 or more"),
        ("seed=4294967296", "seed is 4294967296, expected 4294967295 or less"),
    ],
)
def test_impossible_values_are_refused_when_the_config_is_read(override, message):
    with pytest.raises(InputError, match=message) as error:
        read_config("demo.py", [f"--config.{override}"], TrainingConfig)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["demo.py", "cfm1024.py", "cfm2048.py:x4", "cfm512.py"])
def test_a_saved_config_is_read(name):
    config = read_config(name, [], TrainingConfig)
    saved = json.loads(json.dumps(to_mapping(config)))
    assert from_mapping(TrainingConfig, saved, "checkpoint") == config
    assert saved["unet"]["channel_mult"] == list(config.architecture.channel_mult)


def test_the_demo_names_every_field():
    """It documents the fields: a field that it leaves out would be explained nowhere."""
    text, missing = (SHIPPED / "demo.py").read_text(), []
    for section, value in to_mapping(TrainingConfig()).items():
        names = [f"{section}.{name}" for name in value] if isinstance(value, dict) else [section]
        missing += [name for name in names if f"config.{name} = " not in text]
    assert not missing


@dataclasses.dataclass(frozen=True)
class Wheel:
    spokes: int
    size: float = 1.0


@dataclasses.dataclass(frozen=True)
class Cart:
    wheels: tuple[Wheel, ...]
    load: tuple[int, int] = (0, 0)
    name: str | None = None


def test_mappings_become_dataclasses():
    cart = from_mapping(Cart, {"wheels": [{"spokes": 3, "size": 2}], "load": [1, 2]}, "here")
    assert cart == Cart((Wheel(3, 2.0),), (1, 2))
    assert type(cart.wheels[0].size) is float
    assert from_mapping(Cart, to_mapping(cart), "here") == cart


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ([], r"expected an object with the fields wheels, load, name, found \[\]"),
        ({}, "missing fields wheels"),
        ({"wheels": [], "whels": 1}, "unknown fields whels"),
        ({"wheels": [{}]}, r"missing fields wheels\[0\].spokes"),
        ({"wheels": [{"spokes": True}]}, r"expected wheels\[0\].spokes as int, found True"),
        ({"wheels": [], "load": [1]}, r"expected load as a list such as \(int, int\), found \[1\]"),
        ({"wheels": [], "name": 3}, "expected name as str, found 3"),
    ],
)
def test_mappings_that_do_not_fit_are_named(mapping, message):
    with pytest.raises(InputError, match=f"^here: {message}; mend it$"):
        from_mapping(Cart, mapping, "here", "mend it")


def test_changes_name_every_field():
    before, after = {"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 4}, "e": 5}
    assert changes(before, after) == ["b.c: 2 → 4", "b.d: 3 → '(absent)'", "e: '(absent)' → 5"]


@pytest.mark.parametrize(
    ("config", "low_res", "high_res"),
    [
        ("cfm1024.py", 512, 1024),
        ("cfm1024.py:x4", 256, 1024),
        ("cfm512.py", 128, 512),
        ("cfm2048.py", 1024, 2048),
        ("cfm2048.py:x4", 512, 2048),
    ],
)
def test_the_papers_configs(config, low_res, high_res):
    loaded = read_config(config, (), TrainingConfig)
    assert (loaded.data.low_res, loaded.data.high_res) == (low_res, high_res)
    assert (loaded.source.start, loaded.source.noise_step) == ("low_res", 400)
    assert count(split(abstract_network(loaded.architecture))[1]) == 305_806_340
