"""Command lines with a config: overrides, variants, refusals; the configs that come with the project."""

import argparse

import pytest

from fmboost_jax.configuration import changes, load_config, parse_arguments
from fmboost_jax.errors import InputError
from fmboost_jax.models.parameters import count, split
from fmboost_jax.models.unet import UNetConfig, abstract_unet


def test_overrides_keep_the_types_of_the_file():
    overrides = ["--config.optim.lr=1e-4", "--config.unet.channel_mult=(1,2,3)", "--config.data.dir=somewhere"]
    config = load_config("configs/demo.py", overrides)
    assert config.optim.lr == 1e-4
    assert config.unet.channel_mult == (1, 2, 3)
    assert config.data.dir == "somewhere"


def test_arguments_may_come_in_any_order():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out")
    words = ["--config.seed=3", "--out", "there", "--config", "configs/demo.py"]
    arguments, config = parse_arguments(parser, words)
    assert arguments.out == "there"
    assert config.seed == 3


@pytest.mark.parametrize(
    ("config", "overrides", "expected"),
    [
        ("configs/none.py", [], "does not exist"),
        ("configs/demo.py", ["--config.optim.lrr=1"], 'Did you mean "lr"'),
        ("configs/demo.py", ["--config.train.steps=1e3"], "1e3"),
        ("configs/demo.py", ["--nonsense"], "--nonsense"),
        ("configs/demo.py", ["nonsense"], "nonsense"),
        ("configs/cfm1024.py:x3", [], "x3"),
    ],
)
def test_refusals_are_one_line(config, overrides, expected):
    with pytest.raises(InputError) as error:
        load_config(config, overrides)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


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
    loaded = load_config(f"configs/{config}")
    assert (loaded.data.low_res, loaded.data.high_res) == (low_res, high_res)
    assert (loaded.source.start, loaded.source.noise_step) == ("low_res", 400)
    assert count(split(abstract_unet(UNetConfig.of(loaded.unet)))[1]) == 305_806_340
