"""Draw a run's loss and its evaluations' PSNR.

python tools/loss_curve.py RUN/metrics.jsonl OUT.png
"""

import json
import sys

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot


def main() -> None:
    """The command."""
    metrics, out = sys.argv[1:]
    with open(metrics, encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    losses = [(r["step"], r["loss"]) for r in records if "loss" in r]
    left.semilogy(*zip(*losses, strict=True))
    left.set(xlabel="step", ylabel="flow-matching loss", title="training")
    for name, label in (("evaluate/psnr", "boosted"), ("evaluate/low_res/psnr", "low-res, upsampled")):
        scores = [(r["step"], r[name]) for r in records if name in r]
        if scores:
            right.plot(*zip(*scores, strict=True), marker="o", label=label)
    right.set(xlabel="step", ylabel="PSNR in dB", title="held-out images")
    right.legend()
    figure.savefig(out, dpi=110)
    print(out)


if __name__ == "__main__":
    main()
