"""The log of a run that continues after a crash."""

import importlib
import json
import sys

from fmboost_jax.training.logs import Logs


def test_the_remains_of_a_crash_are_dropped(tmp_path):
    """Zeros in place of lines, part of a line, other values, and the records after the step that is restored."""
    path = tmp_path / "metrics.jsonl"
    good = [json.dumps({"step": step, "loss": 1.0}).encode() + b"\n" for step in (1, 2, 3)]
    path.write_bytes(good[0] + b"\0" * 40 + b"\n" + b"[1]\n" + b"\xff\n" + good[1] + good[2] + b'{"step": 2, "lo')
    logs = Logs(str(tmp_path), 2)
    logs.scalars(3, {"loss": 0.5})
    logs.close()
    assert path.read_bytes() == good[0] + good[1] + b'{"step": 3, "loss": 0.5}\n'


def test_a_run_starts_without_pytorch(tmp_path, monkeypatch):
    """Its import takes seconds, and a run has no use for it; who needs it later still gets it."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tensorboardX", "torch")]:
        monkeypatch.delitem(sys.modules, name)
    Logs(str(tmp_path), 0).close()
    assert "torch" not in sys.modules
    assert importlib.util.find_spec("torch")
