"""Similarity of phrases by the cosine of their embeddings; each phrase is embedded once (E22: once per pair)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sail_lightning.errors import SailError

Embedding = NDArray[np.floating[Any]]


class EmbeddedPhrases:
    """The cosine similarity of two phrases' embeddings, in [0, 1]: 0 where it is negative or an embedding is all zero.

    Args:
        embed: Returns the vector (D,) of a phrase; called once for each phrase.
    """

    def __init__(self, embed: Callable[[str], Embedding]) -> None:
        self.embed = embed
        self._known: dict[str, Embedding] = {}

    def __call__(self, prediction: str, reference: str) -> float:
        return max(0.0, min(1.0, float(self._unit(prediction) @ self._unit(reference))))

    def _unit(self, phrase: str) -> Embedding:
        if phrase not in self._known:
            vector = np.asarray(self.embed(phrase), np.float64)
            length = np.linalg.norm(vector)
            self._known[phrase] = vector / length if length else vector
        return self._known[phrase]


def bert_phrases(folder: str | Path) -> EmbeddedPhrases:
    """Loads the published similarity for grounded captions: embeddings are means of the last hidden states of
    bert-base-uncased.

    Args:
        folder: Folder of the model as Hugging Face writes it, or the model's name on the hub.

    Raises:
        SailError: There is no such model.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise SailError(f"no text model in {folder} ({reason}); name a folder of bert-base-uncased") from None

    def embed(phrase: str) -> Embedding:
        with torch.inference_mode():
            states = model(**tokenizer(phrase, return_tensors="pt", truncation=True)).last_hidden_state
        vector: Embedding = states[0].mean(0).double().numpy()
        return vector

    return EmbeddedPhrases(embed)
