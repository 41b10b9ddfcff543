"""The throughput benchmark runs and prints its result; its speed is not tested."""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def test_data_bench_prints_its_result():
    words = ["--records", "64", "--batch-size", "4", "--repeats", "2"]
    ended = subprocess.run([sys.executable, "-m", "bench.data", *words], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert re.match(r"pipeline: [\d,]+ MB/s, [\d,]+ records/s \(median of 2; .*page cache warm\n", ended.stdout)
