"""Each protocol from its config to its numbers: small photographs, real networks of few weights.

`sr.py:jpeg` is in tests/evaluation/test_evaluate.py.
"""

import json

import numpy as np
import pytest
import skimage.data
from PIL import Image

from fmboost_jax.boosting.bundle import BundleConfig, write_bundle
from fmboost_jax.configuration import read_config
from fmboost_jax.evaluate import main
from fmboost_jax.evaluation.protocol import Protocol
from fmboost_jax.files import atomic_folder
from fmboost_jax.flow.coupling import Coupling
from fmboost_jax.interop.autoencoders import load_first_stage
from fmboost_jax.metrics.features import KINDS, Kind
from fmboost_jax.models.parameters import split
from fmboost_jax.models.unet import UNet
from tests.boosting.test_pipelines import UNET, pipeline
from tests.evaluation.test_evaluate import TINY, TinyFeatures
from tests.metrics.networks import write_clip, write_lpips
from tests.random_models import random_model

pytest.importorskip("torch")
pytest.importorskip("diffusers")

# Networks of random weights make latents of any size.
pytestmark = pytest.mark.filterwarnings("ignore:the latents' standard deviation")

# What makes a protocol small: everything that decides its cost, and nothing that decides which code runs.
SMALL = ("high_res=32", "low_res=16", "base_steps=1", "steps=1", "batch_size=2", "patches=((16,2),)", "features=tiny")


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Folders of a base model, of a booster of its latents, and of the metrics' networks."""
    folder = tmp_path_factory.mktemp("networks")
    pipeline("stable_diffusion").save_pretrained(folder / "base")
    stage = load_first_stage("kl", str(folder / "base"))
    source = Coupling(noise_step=100, upsampling="lsu")
    with atomic_folder(folder / "bundle") as bundle:
        config = BundleConfig(UNET, source, "linear", 2, 16, 32, stage.spec, 0)
        write_bundle(bundle, split(random_model(UNet, UNET))[1], config)
    for name, write in (("clip", write_clip), ("lpips", write_lpips)):
        (folder / name).mkdir()
        write(folder / name)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Folders of four photographs, 32², of the same at 16², and a file of captions."""
    folder = tmp_path_factory.mktemp("images")
    names = ("astronaut", "coffee", "chelsea", "rocket")
    for size in (32, 16):
        (folder / str(size)).mkdir()
        for name in names:
            photograph = Image.fromarray(getattr(skimage.data, name)()[100:164, 100:164])
            photograph.resize((size, size)).save(folder / str(size) / f"{name}.png")
    (folder / "captions.json").write_text(json.dumps({name: f"a photograph of {name}" for name in names}))
    return folder


@pytest.mark.parametrize("name", ["coco5k.py", "pairs.py", "sr.py:blur_noise"])
def test_protocol_runs_from_config_to_results(name, networks, images, tmp_path, monkeypatch):
    monkeypatch.setitem(KINDS, "tiny", Kind(TINY, 6, lambda path: TinyFeatures()))
    words = ["--config", name, *(f"--config.{field}" for field in SMALL), "--cache", tmp_path / "statistics"]
    words += [f"--config.{network}.path={networks / network}" for network in ("clip", "lpips")]
    words += ["--images", images / "32", "--booster", networks / "bundle", "--out", tmp_path / "out"]
    if name == "coco5k.py":
        words += ["--base", networks / "base", "--captions", images / "captions.json"]
    if name == "pairs.py":
        words += ["--low-res", images / "16"]
    main([str(word) for word in words])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    protocol = read_config(f"protocols/{name}", [], Protocol)
    distances = {"fid": TINY, "patch-fid": f"patch-16-{TINY}"}
    assert results["metrics"].keys() == {distances.get(metric, metric) for metric in protocol.metrics}
    assert np.isfinite([entry["value"] for entry in results["metrics"].values()]).all()
    assert (results["protocol"], results["images"], results["skipped"]) == (protocol.name, 4, [])
    assert results["seconds_an_image"] > 0
