"""LPIPS, CLIP score and SSIMULACRA 2 with random weights and known images, against computations of their own."""

import numpy as np
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.numpy import save_file

from fmboost_jax.errors import InputError
from fmboost_jax.metrics.clip import CLIPScore
from fmboost_jax.metrics.perceptual import LPIPS, LPIPS_FILES, ssimulacra2
from tests.boosting.test_pipelines import tokenizer
from tests.conftest import relative_error

# AlexNet's convolutions: outputs, inputs, kernel, stride, padding, and whether its input is pooled first.
ALEXNET = ((64, 3, 11, 4, 2, False), (192, 64, 5, 1, 2, True), (384, 192, 3, 1, 1, True))
ALEXNET += ((256, 384, 3, 1, 1, False), (256, 256, 3, 1, 1, False))


@pytest.fixture(scope="module")
def lpips_weights(tmp_path_factory):
    """A folder of random weights, and the same as PyTorch has them."""
    generator = np.random.default_rng(0)
    kernels = [generator.normal(0, (2 / (i * k * k)) ** 0.5, (o, i, k, k)) for o, i, k, *_ in ALEXNET]
    biases = [generator.normal(0, 0.1, outputs) for outputs, *_ in ALEXNET]
    linear = [generator.uniform(0, 1, outputs) for outputs, *_ in ALEXNET]
    features = {}
    for number, (kernel, bias) in enumerate(zip(kernels, biases, strict=True), 1):
        features[f"conv{number}.kernel"] = np.ascontiguousarray(kernel.transpose(2, 3, 1, 0), np.float32)
        features[f"conv{number}.bias"] = bias.astype(np.float32)
    folder = tmp_path_factory.mktemp("lpips")
    save_file(features, folder / LPIPS_FILES[0])
    save_file({f"lin{number}": w.astype(np.float32) for number, w in enumerate(linear)}, folder / LPIPS_FILES[1])
    return str(folder), [[torch.tensor(array) for array in arrays] for arrays in (kernels, biases, linear)]


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


def test_lpips_is_its_equation(lpips_weights):
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
    with pytest.raises(InputError, match=r"fetch alexnet_features.*huggingface\.co/tux-type/jaxlpips.*lpips\.path"):
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
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    torch.manual_seed(4)
    words = tokenizer()
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    text = {**small, "vocab_size": len(words), "bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
    vision = {**small, "image_size": 32, "patch_size": 8}
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    words.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


def test_clip_score_is_the_cosine_of_the_embeddings(clip_folder):
    from transformers import CLIPModel, CLIPTokenizer

    images = np.stack([skimage.data.astronaut()[:48, :64], skimage.data.coffee()[:48, :64]])
    captions = ["an astronaut", "a cup of coffee " * 40]
    found = CLIPScore(clip_folder)(images, captions)

    model, words = CLIPModel.from_pretrained(clip_folder).eval(), CLIPTokenizer.from_pretrained(clip_folder)
    mean, deviation = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    expected = []
    for image, caption in zip(images, captions, strict=True):
        small = np.asarray(Image.fromarray(image).resize((42, 32), Image.Resampling.BICUBIC))[:, 5:37]
        pixels = torch.tensor(((small / 255 - mean) / deviation).transpose(2, 0, 1)[None], dtype=torch.float32)
        ids = words(caption, truncation=True, max_length=77, return_tensors="pt")
        with torch.no_grad():
            seen = model.visual_projection(model.vision_model(pixels).pooler_output)[0].numpy()
            read = model.text_projection(model.text_model(**ids).pooler_output)[0].numpy()
        cosine = seen @ read / np.linalg.norm(seen) / np.linalg.norm(read)
        expected.append(100 * max(cosine, 0))
    np.testing.assert_allclose(found, expected, atol=0.05)
    assert max(expected) > 0


def test_a_missing_clip_model_is_named(tmp_path):
    with pytest.raises(InputError, match=r"clip model .*model\.safetensors"):
        CLIPScore(str(tmp_path))
