"""`python -m fmboost_jax.plan`: a tiny network, compiled for TPUs that this machine does not have."""

import contextlib
import io
import json

import jax
import pytest

from fmboost_jax.planning.compile import wanted_memory
from fmboost_jax.planning.costs import operations, total_flops
from fmboost_jax.planning.hlo import parse
from tests.commands import ROOT, call, call_refused, command

pytest.importorskip("libtpu")

TINY = (
    "--config=configs/cfm1024.py",
    "--config.unet.model_channels=32",
    "--config.unet.num_res_blocks=1",
    "--config.unet.channel_mult=(1,)",
    "--config.unet.attention_resolutions=()",
    "--config.unet.num_heads=1",
    "--config.unet.dim_head=32",
    "--config.data.high_res=64",
    "--config.data.low_res=32",
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return f"--config.compilation_cache={tmp_path_factory.mktemp('plans')}"


def printed(*words) -> str:
    """What the command prints, in this process; it switches jax's own cache off."""
    before, output = jax.config.jax_enable_compilation_cache, io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            call("plan", *words)
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
    return output.getvalue()


@pytest.fixture(scope="module")
def on_four_chips(cache, tmp_path_factory):
    """The plan as JSON, and the program's text."""
    hlo = tmp_path_factory.mktemp("hlo") / "step.txt"
    output = printed(*TINY, cache, "--topology=v5e:2x2", "--batch-per-chip=2", "--json", "--hlo", hlo)
    return json.loads(output), hlo.read_text()


def test_json_output(on_four_chips):
    plan, text = on_four_chips
    assert (plan["mode"], plan["chips"], plan["batch_per_chip"], plan["batch"]) == ("train", 4, 2, 8)
    assert plan["mesh"] == {"data": 4, "fsdp": 1, "spatial": 1}
    memory, prediction = plan["memory"], plan["prediction"]
    assert memory["fits"]
    assert memory["total"] == sum(memory[part] for part in ("arguments", "temporaries", "outputs", "code"))
    assert memory["share"] == memory["total"] / memory["available"]
    assert prediction["cycles"] == sum(prediction["categories"].values())
    assert prediction["compute_seconds"] == pytest.approx(prediction["cycles"] / 1.5e9)
    assert prediction["seconds"] == pytest.approx(prediction["compute_seconds"] + prediction["collective_seconds"])
    assert prediction["images_per_second"] == pytest.approx(8 / prediction["seconds"])
    assert prediction["mfu"] == pytest.approx(prediction["model_flops"] / (prediction["seconds"] * 4 * 197e12))
    assert prediction["days"] == pytest.approx(prediction["seconds"] * 1e6 / 86400)
    assert prediction["flops"] == 4 * total_flops(operations(parse(text)))
    assert 0.7 < prediction["flops"] / prediction["model_flops"] < 1.6
    # The gradients of 185,700 parameters, of two bytes or four, and a few scalars are averaged over all chips.
    (row,) = prediction["collectives"]
    assert (row["kind"], row["chips"]) == ("all-reduce", 4)
    assert 2 * 185_700 < row["bytes"] < 4 * 185_700
    assert len(prediction["operations"]) == 10
    places = [place.split(":") for operation in prediction["operations"] for place in operation["source"]]
    assert places
    assert all(int(line) <= len((ROOT / "fmboost_jax" / file).read_text().splitlines()) for file, line in places)
    assert "is_scheduled=true" in text


def test_table_output_reads_the_cache(on_four_chips, cache):
    plan, _ = on_four_chips
    output = printed(*TINY, cache, "--topology=v5e:2x2", "--batch-per-chip=2", "--top=3")
    assert "read from the cache" in output
    for line in (
        "batch       2 a chip, 8 in all",
        f"for {plan['prediction']['cycles']:,} cycles",
        f"MFU         {plan['prediction']['mfu']:.1%}",
        "1,000,000 steps in",
        "all-reduce over 4 chips",
        "The 3 most expensive operations:",
    ):
        assert line in output


def test_a_sweep_finds_the_largest_batch_and_recommends(cache):
    words = (*TINY, cache, "--topology=v5e:1x1", "--sweep", "--batches=1,1000000")
    found = json.loads(command("plan", *words, "--json").stdout)
    one, million = found["plans"]
    assert found["recommended"] == 0
    assert one["memory"]["fits"]
    assert one["prediction"]["collectives"] == []
    assert not million["memory"]["fits"]
    assert million["prediction"] is None
    assert million["memory"]["total"] > 2 * million["memory"]["available"]


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (300.99G) "
            "exceeds available HBM (15.75G).",
            int(300.99 * 2**30),
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 17.50G "
            "of 15.75G hbm. Exceeded hbm capacity by 1.75G.",
            int(17.5 * 2**30),
        ),
        ("RESOURCE_EXHAUSTED: too many files", None),
        ("INVALID_ARGUMENT: Used 17.50G of 15.75G hbm.", None),
    ],
)
def test_the_wanted_memory_of_a_program_that_does_not_fit(message, wanted):
    assert wanted_memory(message) == wanted


def test_unknown_topology_gets_one_line():
    line = call_refused("plan", *TINY, "--topology=v7:2x2")
    assert "'v7:2x2' is unknown" in line
    assert "v5e:4x4, v5p:4x4x4, v6e:4x4" in line


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit):
        call("plan", "--help")
    output = capsys.readouterr().out
    for word in ("--topology", "v5p:4x4x4", "--sweep", "--mode", "decode", "--json", "docs/planning.md", "7 minutes"):
        assert word in output
