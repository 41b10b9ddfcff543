"""LPIPS, CLIP score and SSIMULACRA 2 with random weights and known images, against independent computations."""

import numpy as np
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from PIL import Image

from fmboost_jax.errors import InputError
from fmboost_jax.metrics.clip import CLIPIQA, CLIPScore
from fmboost_jax.metrics.perceptual import LPIPS, ssimulacra2
from tests.conftest import relative_error
from tests.metrics.networks import ALEXNET, write_clip, write_lpips


@pytest.fixture(scope="module")
def lpips_weights(tmp_path_factory):
    """A folder of random weights, and the same as PyTorch has them."""
    folder = tmp_path_factory.mktemp("lpips")
    return str(folder), write_lpips(folder)


def lpips_by_torch(image, original, kernels, biases, linear):
    """Zhang et al. 2018, equation 1, in float64."""
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    pair = [((torch.tensor(x, dtype=torch.float64) - shift) / scale).permute(0, 3, 1, 2) for x in (image, original)]
    total = 0
    for (*_, stride, padding, pooled), kernel, bias, weight in zip(ALEXNET, kernels, biases, linear, strict=True):
        pair = [F.max_pool2d(x, 3, 2) if pooled else x for x in pair]
        pair = [F.relu(F.conv2d(x, kernel, bias, stride, padding)) for x in pair]
        unit = [x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10) for x in pair]
        total += ((unit[0] - unit[1]).square() * weight[:, None, None]).sum(1).mean((1, 2))
    return total


def test_lpips_agrees_with_its_equation(lpips_weights):
    folder, weights = lpips_weights
    lpips = LPIPS(folder)
    original = np.random.default_rng(1).uniform(-1, 1, (2, 67, 80, 3)).astype(np.float32)
    image = original * np.array([0.5, 0.9], np.float32)[:, None, None, None]
    found = lpips.function(lpips.parameters, image, original)
    assert found.shape == (2,)
    assert relative_error(found, lpips_by_torch(image, original, *weights)) < 1e-4
    np.testing.assert_array_equal(lpips.function(lpips.parameters, image, image), 0)
    constant = np.zeros_like(image)
    np.testing.assert_array_equal(lpips.function(lpips.parameters, constant, constant), 0)


def test_missing_lpips_weights_are_named(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"expected alexnet_features\.safetensors and alexnet_lpips\.safetensors"):
        LPIPS(str(tmp_path))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: 1 / 0)
    with pytest.raises(InputError, match=r"put alexnet_features.*huggingface\.co/tux-type/jaxlpips.*lpips\.path"):
        LPIPS()


def test_ssimulacra2_of_known_images():
    photograph = skimage.data.astronaut()[100:228, 150:290]
    assert ssimulacra2(photograph, photograph) == 100
    grey = np.full((32, 32, 3), 90, np.uint8)
    assert ssimulacra2(grey, grey) == 100
    shaken = photograph.astype(int) + np.random.default_rng(0).integers(-3, 4, photograph.shape)
    scores = [ssimulacra2(shaken.clip(0, 255).astype(np.uint8), photograph)]
    for shrunk in (2, 4):
        height, width = photograph.shape[0] // shrunk, photograph.shape[1] // shrunk
        blurred = Image.fromarray(photograph).resize((width, height)).resize(photograph.shape[1::-1])
        scores.append(ssimulacra2(np.asarray(blurred), photograph))
    assert 100 > scores[0] > 80 > scores[1] > scores[2]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    write_clip(folder)
    return str(folder)


@pytest.fixture(scope="module")
def cosines(clip_folder):
    """(images, texts) → the cosine of each image with each text, tower by tower in PyTorch; images become 32² here."""
    from transformers import CLIPModel, CLIPTokenizer

    model, words = CLIPModel.from_pretrained(clip_folder).eval(), CLIPTokenizer.from_pretrained(clip_folder)
    mean, deviation = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])

    def unit(features):
        return features.numpy() / np.linalg.norm(features)

    @torch.no_grad()
    def compute(images, texts):
        seen, read = [], []
        for image in images:
            small = np.asarray(Image.fromarray(image).resize((42, 32), Image.Resampling.BICUBIC))[:, 5:37]
            pixels = torch.tensor(((small / 255 - mean) / deviation).transpose(2, 0, 1)[None], dtype=torch.float32)
            seen.append(unit(model.visual_projection(model.vision_model(pixels).pooler_output)[0]))
        for text in texts:
            ids = words(text, truncation=True, max_length=77, return_tensors="pt")
            read.append(unit(model.text_projection(model.text_model(**ids).pooler_output)[0]))
        return np.stack(seen) @ np.stack(read).T

    return compute


IMAGES = np.stack([skimage.data.astronaut()[:48, :64], skimage.data.coffee()[:48, :64]])


def test_clip_score_is_the_cosine_of_the_embeddings(clip_folder, cosines):
    captions = ["an astronaut", "a cup of coffee " * 40]
    expected = 100 * np.diag(cosines(IMAGES, captions)).clip(0)
    np.testing.assert_allclose(CLIPScore(clip_folder)(IMAGES, captions), expected, atol=0.05)
    assert max(expected) > 0


def test_clip_iqa_is_the_probability_of_the_good_prompt(clip_folder, cosines):
    found = CLIPIQA(clip_folder)(IMAGES)
    odds = np.exp(100 * cosines(IMAGES, ["Good photo.", "Bad photo."]))
    # A random network is sure of itself: the logarithms tell more than the probabilities.
    expected = np.log(odds[:, 0] / odds.sum(axis=1))
    np.testing.assert_allclose(np.log(found), expected, atol=0.1)
    assert abs(expected[0] - expected[1]) > 1


def test_a_missing_clip_model_is_named(tmp_path):
    with pytest.raises(InputError, match=r"clip model .*model\.safetensors"):
        CLIPScore(str(tmp_path))
