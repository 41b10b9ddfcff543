"""A metric from outside the package, in a file of its own, through the real command."""

import json

import numpy as np
import pytest
from PIL import Image

from fmboost_jax.evaluate import main
from fmboost_jax.metrics.table import METRICS

EXTENSION = """
import jax.numpy as jnp

from fmboost_jax.metrics.table import METRICS, Metric


def mean_absolute_error(image, original):
    return jnp.mean(jnp.abs(image - original), axis=(1, 2, 3))


METRICS["mine"] = Metric("paired", mean_absolute_error, unit="of 2", higher_is_better=False)
METRICS["brightness"] = Metric("single", lambda image: jnp.mean(image, axis=(1, 2, 3)))
"""


@pytest.fixture
def table():
    before = dict(METRICS)
    yield
    METRICS.clear()
    METRICS.update(before)


@pytest.mark.usefixtures("table")
def test_a_metric_of_ones_own_is_measured_by_the_command(tmp_path, capsys):
    (tmp_path / "my_metric.py").write_text(EXTENSION)
    generator, pixels = np.random.default_rng(0), {}
    for folder in ("images", "reference"):
        (tmp_path / folder).mkdir()
        pixels[folder] = generator.integers(0, 256, (3, 8, 8, 3), np.uint8)
        for number, image in enumerate(pixels[folder]):
            Image.fromarray(image).save(tmp_path / folder / f"{number}.png")
    words = ["--import", tmp_path / "my_metric.py", "--metrics", "mine,brightness", "--out", tmp_path / "out"]
    main([str(word) for word in ("--images", tmp_path / "images", "--reference", tmp_path / "reference", *words)])
    found = json.loads((tmp_path / "out" / "results.json").read_text())["metrics"]
    images, reference = (pixels[folder].astype(np.float64) / 127.5 - 1 for folder in ("images", "reference"))
    assert found["mine"]["value"] == pytest.approx(np.abs(images - reference).mean(), rel=1e-5)
    assert found["brightness"]["value"] == pytest.approx(images.mean(), abs=1e-6)
    assert "of 2" in capsys.readouterr().out
