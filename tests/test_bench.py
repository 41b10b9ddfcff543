"""The benchmarks: implementations in separate processes, failures, exponents, predictions."""

import functools
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from bench import accelerator, headline
from bench.alternation import Child, Implementation, alternate, table
from bench.growth import exponent
from bench.memory import peak_gib
from fmboost_jax.configuration import read_config
from fmboost_jax.errors import InputError
from fmboost_jax.flow.solvers import Solver
from fmboost_jax.training.config import TrainingConfig
from tests.commands import ROOT
from tests.implementations import busy, die, fail, hold


def test_each_peer_is_compared_and_failures_do_not_stop_the_others():
    ways = {"ours": functools.partial(busy, 1), "slow": functools.partial(busy, 3000), "raises": fail, "dies": die}
    found = {result.name: result for result in alternate([Implementation(*way) for way in ways.items()], repeats=3)}
    assert list(found) == list(ways)
    assert found["slow"].ratio > 1
    assert found["slow"].seconds > found["ours"].seconds > 0
    assert found["raises"].failure == "ValueError: no such library"
    assert "code 3" in found["dies"].failure
    lines = table("title", list(found.values())).splitlines()
    assert lines[0] == "### title"
    assert f"{found['slow'].ratio:.2f}×" in lines[5]
    assert "no such library" in lines[6]


@pytest.mark.parametrize("mode", ["train", "sample"])
def test_an_accelerators_speed_is_measured(mode):
    """The train step returns its donated state; without it a second run would fail."""
    settings = ("unet.model_channels=32", "unet.channel_mult=(1,)", "unet.num_res_blocks=1", "train.batch_size=1")
    words = [f"--config.{setting}" for setting in (*settings, "data.high_res=64", "data.low_res=32")]
    part = accelerator.Part("", read_config("cfm1024.py", words, TrainingConfig), mode, Solver("euler", 1))
    with ThreadPoolExecutor() as pool:
        row = accelerator.measured(part, pool.submit(accelerator.compiled, part), repeats=1)
    assert row["seconds"] > 0
    assert row["compile_seconds"] > 0
    assert row["images_per_second"] == pytest.approx(1 / row["seconds"])


@pytest.mark.parametrize(("peer", "failure"), [(functools.partial(busy, 1), ""), (fail, "ValueError: no such library")])
def test_an_accelerators_first_part_is_compared_with_peers(peer, failure):
    part = next(accelerator.parts(small=True))
    with ThreadPoolExecutor() as pool, Child(Implementation("peer", peer)) as child:
        compilation = pool.submit(accelerator.compiled, part)
        child.prepare()
        row = accelerator.compared(part, compilation, child, repeats=1)
    if failure:
        assert row == {"failure": failure}
    else:
        assert row["ratio"] == row["seconds"] / row["ours"] > 0


def test_an_accelerators_parts_are_measured():
    names = [part.name for part in accelerator.parts(small=True)]
    assert len(names) == len(set(names)) == 13


def test_peak_memory_is_that_of_each_process():
    ballast = np.ones(2**27)  # 1 GiB here, which a child must not report
    ways = {"small": functools.partial(busy, 1), "large": functools.partial(hold, 0.05)}
    small, large = alternate([Implementation(*way) for way in ways.items()], repeats=1)
    assert peak_gib() > ballast.nbytes / 2**30
    assert small.peak < 1
    assert large.peak > small.peak + 0.3
    assert small.passing < 0.05
    assert large.passing == pytest.approx(0.4, abs=0.05)


@pytest.mark.parametrize("slope", [0.5, 1, 2])
def test_exponents_of_powers(slope):
    amounts = np.array([1, 2, 4, 16])
    assert exponent(amounts, 3 * amounts**slope) == pytest.approx(slope)
    assert np.isnan(exponent(amounts, [1, 2, np.nan, 4]))
    assert np.isnan(exponent(amounts, [1, 2, -1, 4]))


@pytest.mark.filterwarnings("ignore:the latents' standard deviation")
def test_the_headline_runs_on_stand_ins_and_reports_it(capsys):
    pytest.importorskip("torchax")
    headline.main(["--random", "tiny", "--repeats", "2", "--steps", "1", "--boost-steps", "1"])
    printed = capsys.readouterr().out
    assert "LCM, 16² → 32²" in printed
    assert re.search(r"\| 1 \+ 1 \| \d+\.\d{3} \| \d+\.\d \| 0\.347 \|", printed)
    assert "not comparable with the published number" in printed
    with pytest.raises(InputError, match="needs --base and --booster, or --random"):
        headline.main(["--base", "folder"])


def test_predictions_for_tpus_are_among_the_benchmarks():
    printed = subprocess.check_output([sys.executable, "-m", "bench", "tpu"], cwd=ROOT, text=True)
    assert len(re.findall(r"^\| cfm1024 \| v5e:2x2 \| 4 \| 8 \|.* \d+\.\d% \|", printed, re.MULTILINE)) >= 1
    assert printed.count("| cfm2048 |") >= 3
