"""Prompts as token numbers, on the host."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Int

# Numbers of the texts' tokens, one array for each text encoder, and masks where an encoder reads one.
Tokens = tuple[Int[np.ndarray | Array, "texts _"], ...]


def warn_of_cut(tokenizer: Any, texts: Sequence[str], length: int) -> None:
    """Warn of each text that has more tokens than `length`.

    Warns:
        UserWarning: it shows what was cut off.
    """
    for text in texts:
        whole = tokenizer([text], truncation=False, verbose=False)["input_ids"][0]
        if len(whole) > length:
            cut = tokenizer([text], truncation=True, max_length=length)["input_ids"][0]
            # The tokens in front agree; where the tokenizer ends a text by a token, that one stays.
            kept = next((i for i, (one, other) in enumerate(zip(cut, whole, strict=False)) if one != other), length)
            rest = tokenizer.decode(whole[kept:], skip_special_tokens=True)
            warnings.warn(f"a prompt of {len(whole)} tokens was cut to {length}; cut off: {rest!r}", stacklevel=5)
