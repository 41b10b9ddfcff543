"""`fmboost`: sub-commands, positional words, refusals, completion; `--help` does not import JAX."""

import io
import pkgutil
import re
import subprocess
import sys
import types

import pytest

import fmboost_jax
from fmboost_jax import cli, errors
from fmboost_jax.errors import InputError
from tests.commands import ROOT


def test_every_command_is_listed():
    modules = [module.name for module in pkgutil.iter_modules(fmboost_jax.__path__)]
    sources = {name: (ROOT / "fmboost_jax" / f"{name}.py") for name in modules}
    commands = {name for name, path in sources.items() if path.is_file() and "def main(argv" in path.read_text()}
    assert set(cli.COMMANDS) == commands - {"cli"}


def test_help_needs_no_jax():
    program = (
        "import sys; from fmboost_jax.cli import main\ntry: main(['--help'])\nfinally: assert 'jax' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in cli.COMMANDS:
        assert f"\n  {command} " in done.stdout
    assert "fmboost sample photo.jpg" in done.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sample", "photo.jpg", "--steps", "2"], ["--input", "photo.jpg", "--steps", "2"]),
        (["sample", "--input", "photo.jpg"], ["--input", "photo.jpg"]),
        (["train-autoencoder", "--workdir", "run"], ["--workdir", "run"]),
    ],
)
def test_positional_words_before_the_first_option(words, expected, monkeypatch):
    name, received = f"fmboost_jax.{words[0].replace('-', '_')}", []
    monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(main=received.append))
    cli.main(words)
    assert received == [expected]


def test_a_command_prints_names_that_are_not_utf8(monkeypatch):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    monkeypatch.setattr(sys, "stdout", stdout)
    errors.run(lambda: print("caf\udce9.png"))
    assert stdout.buffer.getvalue() == b"caf\\udce9.png\n"


def test_unknown_command():
    with pytest.raises(InputError, match="command 'smaple' is unknown; expected one of sample, web"):
        cli.main(["smaple"])


@pytest.mark.parametrize(
    "words",
    [
        "sample --input gs://bucket/a.png",
        "sample --input a.png gs://bucket/a.png",
        "sample --input a.png --out s3://bucket/out",
        "train --config demo --workdir gs://bucket/run",
        "train --config demo --workdir run --config.data.dir=gs://bucket/data",
        "train --config demo --workdir run --config.evaluate.dir=gs:/bucket/data",
        "train-autoencoder --config autoencoder_demo --workdir gs://bucket/run",
        "precompute --config demo --images gs://bucket/photos --out data",
        "precompute --config demo --images photos --out gs://bucket/data",
        "evaluate --images gs://bucket/photos --reference photos --out out",
        "evaluate --images photos --reference photos --out gs://bucket/out",
        "export --checkpoint gs://bucket/run --out bundle",
        "convert to-autoencoder kl sd-vae gs://bucket/vae.safetensors",
        "plan --config demo --topology v5p:2x2x1 --hlo gs://bucket/hlo",
        "web --booster gs://bucket/bundle",
    ],
)
def test_object_stores_are_refused_before_anything_is_done(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"(gs|s3):/+bucket.* object stores and other addresses are not read") as line:
        cli.main(words.split())
    assert "\n" not in str(line.value)
    assert list(tmp_path.iterdir()) == []


def test_completion_knows_the_options_of_every_command(capsys, tmp_path):
    pytest.importorskip("shtab", reason="completion scripts are made with shtab")
    cli.main(["completion", "bash"])
    script = capsys.readouterr().out
    for option in ("--noise-step", "--workdir", "--topology", "--password-file", "from-reference"):
        assert option in script, option
    # What bash does for `fmboost pl<TAB>`.
    function = re.search(r"complete .*-F (\S+) fmboost", script)[1]
    program = f"source {tmp_path / 'script'}; COMP_WORDS=(fmboost pl); COMP_CWORD=1; {function}; echo ${{COMPREPLY[@]}}"
    (tmp_path / "script").write_text(script)
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True)
    assert "plan" in done.stdout.split(), done.stderr
