"""Memory between training steps on CPUs."""

import os
import statistics
import subprocess
import sys

import pytest

from fmboost_jax.runtime import memory

# A program with temporaries of 64 MB each; prints the minor page faults of each call.
CALLS = """
import resource, sys
from fmboost_jax.runtime.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
import jax, jax.numpy as jnp
work = jax.jit(lambda x: jnp.tanh(x[:, ::-1] @ x[:1024]).sum())
x = jnp.ones((16384, 1024))
for _ in range(30):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work(x).block_until_ready()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> float:
    """Of the middlemost of the last calls: a heap grows for a few before everything finds its place."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    ran = subprocess.run(
        [sys.executable, "-c", CALLS, mode], env=environment, capture_output=True, text=True, check=True
    )
    return statistics.median(map(int, ran.stdout.split()[15:]))


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_temporaries_are_kept_from_call_to_call():
    assert faults("plain") > 5_000
    assert faults("keep") < 1_000


def test_with_an_accelerator_nothing_changes(monkeypatch, tmp_path):
    (tmp_path / "accel0").touch()
    monkeypatch.setattr(memory, "_ACCELERATORS", (f"{tmp_path}/nvidia[0-9]*", f"{tmp_path}/accel*"))
    monkeypatch.delenv("JAX_PLATFORMS")
    assert not memory.keep_freed_memory()
