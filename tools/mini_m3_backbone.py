"""The backbone of mini-m3 and its sparse head, for fitting and for evaluating."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import BertModel

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

HIDDEN = 384
MAX_LENGTH = 256  # all-MiniLM-L6-v2's own limit (sentence_bert_config.json), specials included
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


@dataclass(frozen=True)
class Encoded:
    """One text after it went through the backbone.

    Attributes:
        ids: Token ids with [CLS] and [SEP], (t,).
        hidden: Last hidden states, (t, 384).
    """

    ids: IntArray
    hidden: FloatArray


class Backbone:
    """all-MiniLM-L6-v2: token ids and last hidden states."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        # The file asks for 128 tokens and for padding to 128; neither belongs to the model.
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_LENGTH)
        # The checkpoint also holds a pooler, which is not used; its load report would say so.
        logging.getLogger("transformers").setLevel(logging.ERROR)
        # from_pretrained returns the model in evaluation mode: no dropout.
        self._model = BertModel.from_pretrained(folder, add_pooling_layer=False)
        vocabulary = self._tokenizer.get_vocab()
        self.vocabulary_size = len(vocabulary)
        self.special_ids = np.array([vocabulary[token] for token in SPECIAL_TOKENS])

    def tokenize(self, texts: Sequence[str]) -> list[IntArray]:
        """Return each text's token ids, [CLS] and [SEP] included, at most 256."""
        encodings = self._tokenizer.encode_batch(list(texts))
        return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]

    @torch.inference_mode()
    def run(
        self, token_ids: Sequence[IntArray], batch_size: int = 32
    ) -> Iterator[tuple[int, Encoded]]:
        """Yield (position in `token_ids`, encoded text), short texts first.

        Batches of like length need little padding; padding positions are masked and cut off.
        """
        order = sorted(range(len(token_ids)), key=lambda i: len(token_ids[i]))
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            width = max(len(token_ids[i]) for i in batch)
            ids = torch.zeros(len(batch), width, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, i in enumerate(batch):
                ids[row, : len(token_ids[i])] = torch.from_numpy(token_ids[i])
                mask[row, : len(token_ids[i])] = 1
            hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state.numpy()
            for row, i in enumerate(batch):
                yield i, Encoded(token_ids[i], hidden[row, : len(token_ids[i])])

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Encode `texts`, in their order."""
        results = dict(self.run(self.tokenize(texts)))
        return [results[i] for i in range(len(texts))]


@dataclass(frozen=True)
class SparseHead:
    """The sparse head: one linear map from a token's hidden state to its lexical weight.

    Attributes:
        weight: (384,).
        bias: Added to the product.
    """

    weight: FloatArray
    bias: float

    def __call__(self, hidden: FloatArray) -> FloatArray:
        """Return the weights after ReLU, (t,), of hidden states (t, 384)."""
        weights: FloatArray = np.maximum(hidden @ self.weight + np.float32(self.bias), 0)
        return weights
