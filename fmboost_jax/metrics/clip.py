"""CLIP score and CLIP-IQA: captions' fit and quality, with the package `transformers` (PyTorch)."""

import os
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from fmboost_jax.errors import InputError, one_line

# CLIP-IQA's prompts for quality: high, low.
QUALITY_PROMPTS = ("Good photo.", "Bad photo.")
_QUALITY_SCALE = 100.0


class _CLIP:
    """A CLIP model and its processor.

    Args:
        model: folder or hub id of both.

    Raises:
        InputError: transformers or PyTorch is not installed, or the model cannot be loaded.
    """

    def __init__(self, model: str):
        try:
            import torch
            from transformers.models.clip import CLIPModel, CLIPProcessor
        except ImportError as error:
            raise InputError("clip needs transformers and PyTorch: pip install 'fmboost_jax[eval]'") from error
        self._torch = torch
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = _pretrained(CLIPModel, model).eval().to(self._device)
        self._processor = _pretrained(CLIPProcessor, model)

    def _embeddings(self, images: UInt8[np.ndarray, "b h w 3"], texts: list[str]) -> tuple[Any, Any]:
        """Return normalized embeddings of the images, (b, d), and of the texts, (t, d)."""
        inputs = self._processor(
            text=texts, images=list(images), return_tensors="pt", padding=True, truncation=True, max_length=77
        )
        with self._torch.no_grad():
            outputs = self._model(**inputs.to(self._device))
        normalize = self._torch.nn.functional.normalize
        return normalize(outputs.image_embeds), normalize(outputs.text_embeds)


class CLIPScore(_CLIP):
    """CLIP score, 100 · max(cos(image, caption), 0), where cos is the cosine of CLIP's two embeddings.

    Source: Hessel et al. 2021, arXiv 2104.08718, equation 1, with the weight 100 that is usual today instead of 2.5.
    The model's processor resizes and crops the images. Captions are truncated to 77 tokens.

    Args:
        model: folder or hub id of a CLIP model with its processor. Scores of different models are not comparable.

    Raises:
        InputError: transformers or PyTorch is not installed, or the model cannot be loaded.
    """

    def __call__(self, images: UInt8[np.ndarray, "b h w 3"], captions: list[str]) -> Float[np.ndarray, "b"]:
        """Return the score of each image with its caption."""
        image_embeddings, text_embeddings = self._embeddings(images, captions)
        return 100 * (image_embeddings * text_embeddings).sum(-1).clamp(min=0).cpu().numpy()


class CLIPIQA(_CLIP):
    """CLIP-IQA, quality without a reference from 0 to 1: the probability of "Good photo." against "Bad photo.".

    softmax(100 · cos(image, prompt)) over the two prompts. Source: Wang et al. 2023, arXiv 2207.12396, equation 2. The
    paper's network is CLIP's ResNet-50 without position embeddings, on images of any size. Here the processor of the
    given model resizes and crops the images.

    Args:
        model: folder or hub id of a CLIP model with its processor. Values of different models are not comparable.

    Raises:
        InputError: transformers or PyTorch is not installed, or the model cannot be loaded.
    """

    def __call__(self, images: UInt8[np.ndarray, "b h w 3"]) -> Float[np.ndarray, "b"]:
        """Return the probability for each image."""
        image_embeddings, prompt_embeddings = self._embeddings(images, list(QUALITY_PROMPTS))
        logits = _QUALITY_SCALE * image_embeddings @ prompt_embeddings.T
        return logits.softmax(-1)[:, 0].cpu().numpy()


def _pretrained(kind: Any, model: str) -> Any:
    try:
        return kind.from_pretrained(model)
    except (OSError, ValueError) as error:
        known = "the folder" if os.path.isdir(model) else "it is not a folder, and the hub's model"
        raise InputError(
            f"clip model {model}: {known} cannot be loaded ({one_line(error)}); fetch it (config.json, "
            "model.safetensors, tokenizer and preprocessor files) and set clip.path to their folder"
        ) from error
