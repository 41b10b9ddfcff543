"""Networks of metrics with random weights, in the files that their loaders read."""

import numpy as np
import torch
from safetensors.numpy import save_file

from fmboost_jax.metrics.perceptual import LPIPS_FILES
from tests.boosting.test_pipelines import tokenizer

# AlexNet's convolutions: outputs, inputs, kernel, stride, padding, and whether its input is pooled first.
ALEXNET = ((64, 3, 11, 4, 2, False), (192, 64, 5, 1, 2, True), (384, 192, 3, 1, 1, True))
ALEXNET += ((256, 384, 3, 1, 1, False), (256, 256, 3, 1, 1, False))


def write_lpips(folder) -> list[list[torch.Tensor]]:
    """Write random weights of LPIPS; returns its kernels, biases and linear weights as PyTorch has them."""
    generator = np.random.default_rng(0)
    kernels = [generator.normal(0, (2 / (i * k * k)) ** 0.5, (o, i, k, k)) for o, i, k, *_ in ALEXNET]
    biases = [generator.normal(0, 0.1, outputs) for outputs, *_ in ALEXNET]
    linear = [generator.uniform(0, 1, outputs) for outputs, *_ in ALEXNET]
    features = {}
    for number, (kernel, bias) in enumerate(zip(kernels, biases, strict=True), 1):
        features[f"conv{number}.kernel"] = np.ascontiguousarray(kernel.transpose(2, 3, 1, 0), np.float32)
        features[f"conv{number}.bias"] = bias.astype(np.float32)
    save_file(features, folder / LPIPS_FILES[0])
    save_file({f"lin{number}": w.astype(np.float32) for number, w in enumerate(linear)}, folder / LPIPS_FILES[1])
    return [[torch.tensor(array) for array in arrays] for arrays in (kernels, biases, linear)]


def write_clip(folder) -> None:
    """Save a CLIP model of one layer on images of 32², with its tokenizer and image processor."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    torch.manual_seed(4)
    words = tokenizer()
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    text = {**small, "vocab_size": len(words), "bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
    vision = {**small, "image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    words.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
