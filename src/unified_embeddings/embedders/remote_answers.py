"""What a service's answers say, checked before anything is made of them.

What lives here: pure functions from JSON to a service's description, vectors and token ids. What
does not: asking (`remote_transport`, `remote`).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from unified_embeddings.embedders.cached import Vectors
from unified_embeddings.embedders.values import Piece
from unified_embeddings.embedders.word_pieces import words_of_entries
from unified_embeddings.errors import InputError
from unified_embeddings.models.calibration import Calibration
from unified_embeddings.models.catalogue import MODELS
from unified_embeddings.models.fusion import Fusion
from unified_embeddings.types import HEAD_NAMES, FloatArray, HeadName, SparseVector

_FINGERPRINT = re.compile(r"[0-9a-f]{32}")


class BadAnswerError(Exception):
    """What is wrong with an answer. The embedder that asked says whose it is."""


@dataclass(frozen=True, kw_only=True)
class ServiceInfo:
    """What a service says of its model.

    Attributes:
        model: The choice that it was started with.
        model_id: The model's hub id or folder.
        fingerprint: What two embedders must share for their vectors to compare.
        former_fingerprints: Those that earlier versions gave the model.
        revision: The commit of the model's files, or their digest; "" where it has none.
        dimension: Width of the dense vectors.
        max_length: Most tokens of a text, special tokens included.
        document_length: Most tokens of a document's own.
        heads: What it gives.
        engine: What runs the model.
        precision: In which precision.
        device: On which device.
        fusion: How its rankings are fused by default.
        calibration: How likely a hit is relevant; None: not known, or the service does not say.
        sparse_idf: Whether a collection multiplies sparse scores by IDF.
        max_texts: Most texts of one request.
        version: The version of this package that it runs.
    """

    model: str
    model_id: str
    fingerprint: str
    former_fingerprints: tuple[str, ...]
    revision: str
    dimension: int
    max_length: int
    document_length: int
    heads: tuple[HeadName, ...]
    engine: str
    precision: str
    device: str
    fusion: Fusion
    calibration: Calibration | None
    sparse_idf: bool
    max_texts: int
    version: str


def read_info(data: object) -> ServiceInfo:
    """Read the answer of `/info`.

    Raises:
        BadAnswerError: If it is another service's, or a value is missing or of the wrong kind.
    """
    whole = _mapping(data, "the answer")
    if "unified_embeddings" not in whole:
        raise BadAnswerError(
            "it is another kind of service: its answer says nothing of unified_embeddings. Start "
            "one with `unified-embeddings serve`"
        )
    ours = _mapping(whole["unified_embeddings"], "unified_embeddings")
    fingerprint = _text(ours, "fingerprint")
    if not _FINGERPRINT.fullmatch(fingerprint):
        raise BadAnswerError(f"fingerprint must be 32 hex digits, got {fingerprint!r:.80}")
    try:
        fusion = Fusion.from_dict(_mapping(ours.get("fusion"), "fusion"))
    except InputError as error:
        raise BadAnswerError(f"fusion is not usable: {error}") from error
    calibration = None
    if ours.get("calibration") is not None:
        try:
            calibration = Calibration.from_dict(_mapping(ours["calibration"], "calibration"))
        except InputError as error:
            raise BadAnswerError(f"calibration is not usable: {error}") from error
    return ServiceInfo(
        model=_text(ours, "model"),
        model_id=_text(whole, "model_id"),
        fingerprint=fingerprint,
        former_fingerprints=_former(ours.get("former_fingerprints")),
        revision=_optional_text(ours, "revision"),
        dimension=_count(ours, "dimension"),
        max_length=_count(ours, "max_length"),
        document_length=_count(ours, "document_length"),
        heads=_heads(ours.get("heads")),
        engine=_text(ours, "engine"),
        precision=_text(ours, "precision"),
        device=_text(ours, "device"),
        fusion=fusion,
        calibration=calibration,
        sparse_idf=ours.get("sparse_idf") is True,
        max_texts=_count(whole, "max_client_batch_size"),
        version=_text(whole, "version"),
    )


def read_vectors(
    data: object, texts: Sequence[str], heads: frozenset[HeadName], dimension: int
) -> list[Vectors]:
    """Read the vectors of an answer of `/v1/m3`, base64-encoded, bit for bit the service's own.

    Args:
        data: The answer.
        texts: What was asked about; the answer names each text, so that none can be swapped.
        heads: What was asked for.
        dimension: Width of the dense vectors.

    Raises:
        BadAnswerError: If it is not the vectors of these texts, or one breaks a rule.
    """
    results = _mapping(data, "the answer").get("results")
    if not isinstance(results, list) or len(results) != len(texts):
        count = len(results) if isinstance(results, list) else "no"
        raise BadAnswerError(f"expected results of {len(texts)} texts, got {count}")
    all_vectors: list[Vectors] = []
    for index, (item, text) in enumerate(zip(results, texts, strict=True)):
        result = _mapping(item, f"result {index}")
        if result.get("text") != text:
            raise BadAnswerError(f"result {index} is of another text than was sent there")
        try:
            all_vectors.append(_read_result(result, heads, dimension))
        except BadAnswerError as error:
            raise BadAnswerError(f"result {index}: {error}") from error
    widths = {cast("FloatArray", v["colbert"]).shape[1] for v in all_vectors if "colbert" in v}
    if len(widths) > 1:
        raise BadAnswerError(f"ColBERT rows must be of one width, got {sorted(widths)}")
    return all_vectors


def read_usage(data: object) -> tuple[int, int]:
    """Return the tokens that an answer of `/v1/m3` took, and how many of its texts were cut."""
    usage = _mapping(_mapping(data, "the answer").get("usage"), "usage")
    return _count(usage, "total_tokens", least=0), _count(usage, "truncated", least=0)


def is_model(name: str, info: ServiceInfo) -> bool:
    """Tell whether a service's model is called so: by its choice, hub id or another known name."""
    if name == info.model:
        return True
    for choice in (name, info.model):
        # The hub id of a pair is that of its first model alone.
        if choice in MODELS and MODELS[choice].sparse_model is not None:
            return False
    hub_id = MODELS[name].model_id if name in MODELS else name
    return info.model_id in (name, hub_id)


def read_tokens(data: object, expected: int) -> list[list[int]]:
    """Return the token ids in an answer of `/tokenize`, special tokens left out.

    Raises:
        BadAnswerError: If it is not the ids of as many texts as expected.
    """
    ids_of_texts: list[list[int]] = []
    for rows in _read_token_rows(data, expected):
        ids_of_texts.append([_count(row, "id", least=0) for row in rows if not row.get("special")])
    return ids_of_texts


def read_pieces(data: object) -> list[Piece]:
    """Return the tokens in an answer of `/tokenize` about one text.

    Raises:
        BadAnswerError: If it is not the tokens of one text.
    """
    (rows,) = _read_token_rows(data, 1)
    entries: list[str] = []
    for row in rows:
        entry = row.get("text", "")
        if not isinstance(entry, str):
            raise BadAnswerError(f"a token's text should be a text, got {entry!r:.80}")
        entries.append(entry)
    are_special = [bool(row.get("special")) for row in rows]
    words = words_of_entries(entries, are_special)
    return [
        Piece(_count(row, "id", least=0), entry, is_special, word)
        for row, entry, is_special, word in zip(rows, entries, are_special, words, strict=True)
    ]


def _read_token_rows(data: object, expected: int) -> list[list[Mapping[str, object]]]:
    """Return the rows of each text in an answer of `/tokenize`."""
    if not isinstance(data, list) or len(data) != expected:
        raise BadAnswerError(f"expected the tokens of {expected} texts, got {data!r:.80}")
    rows_of_texts = []
    for tokens in data:
        if not isinstance(tokens, list):
            raise BadAnswerError(f"expected a list of tokens, got {tokens!r:.80}")
        rows_of_texts.append([_mapping(token, "a token") for token in tokens])
    return rows_of_texts


def read_dense(numbers: object, dimension: int) -> FloatArray:
    """Return a dense vector, float32 (dimension,), from base64 or a list of numbers.

    Raises:
        BadAnswerError: If it is not as many finite numbers.
    """
    if isinstance(numbers, str):
        vector = _from_base64(numbers, "dense")
    else:
        vector = _from_list(numbers, "dense")
    if vector.shape != (dimension,):
        raise BadAnswerError(f"expected dense of {dimension} numbers, got shape {vector.shape}")
    return _finite(vector, "dense")


def read_sparse(value: object) -> SparseVector:
    """Return a sparse vector from lists of indices and values.

    Raises:
        BadAnswerError: If it breaks one of SparseVector's rules.
    """
    parts = _mapping(value, "sparse")
    indices = parts.get("indices")
    if not isinstance(indices, list):
        raise BadAnswerError(f"expected sparse with lists of indices and values, got {value!r:.80}")
    try:
        return SparseVector(
            np.asarray(indices) if indices else np.zeros(0, dtype=np.int32),
            _from_list(parts.get("values"), "sparse"),
        )
    except ValueError as error:
        raise BadAnswerError(f"sparse: {error}") from error


def _read_result(
    result: Mapping[str, object], heads: frozenset[HeadName], dimension: int
) -> Vectors:
    vectors: Vectors = {}
    for head in heads:
        if result.get(head) is None:
            raise BadAnswerError(f"{head} was asked for and is not there")
    if "dense" in heads:
        vectors["dense"] = read_dense(result["dense"], dimension)
    if "sparse" in heads:
        vectors["sparse"] = read_sparse(result["sparse"])
    if "colbert" in heads:
        vectors["colbert"] = _read_colbert(_mapping(result["colbert"], "colbert"))
    return vectors


def _read_colbert(parts: Mapping[str, object]) -> FloatArray:
    if parts.get("dtype") != "float32":
        raise BadAnswerError(f"expected colbert as float32, got {parts.get('dtype')!r:.80}")
    numbers = _from_base64(parts.get("data"), "colbert")
    shape = parts.get("shape")
    if not isinstance(shape, list) or len(shape) != 2:
        raise BadAnswerError(f"expected colbert's shape as two numbers, got {shape!r:.80}")
    rows, width = (_whole(number, "colbert's shape", least=1) for number in shape)
    if numbers.size != rows * width:
        raise BadAnswerError(f"colbert holds {numbers.size} numbers, not {rows} x {width}")
    return _finite(numbers.reshape(rows, width), "colbert")


def _from_base64(text: object, what: str) -> FloatArray:
    if not isinstance(text, str):
        raise BadAnswerError(f"expected {what} in base64, got {text!r:.80}")
    try:
        raw = base64.b64decode(text, validate=True)
        return np.frombuffer(raw, dtype="<f4").astype(np.float32)
    except (binascii.Error, ValueError) as error:
        raise BadAnswerError(f"{what} is no base64 of float32 numbers: {error}") from error


def _from_list(numbers: object, what: str) -> FloatArray:
    """Return a list of JSON numbers as float32, not strings that happen to read as numbers."""
    if not isinstance(numbers, list):
        raise BadAnswerError(f"expected {what} as a list of numbers, got {numbers!r:.80}")
    if not all(type(number) in (int, float) for number in numbers):
        raise BadAnswerError(f"{what} holds what is no number")
    try:
        with np.errstate(over="ignore"):  # becomes infinite, which is refused
            return np.array(numbers, dtype=np.float32)
    except OverflowError as error:
        raise BadAnswerError(f"{what}: {error}") from error


def _finite(array: FloatArray, what: str) -> FloatArray:
    if not np.isfinite(array).all():
        raise BadAnswerError(f"{what} holds NaN or infinity")
    return array


def _mapping(value: object, what: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise BadAnswerError(f"expected {what} as a JSON object, got {value!r:.80}")
    return value


def _text(values: Mapping[str, object], name: str) -> str:
    value = values.get(name)
    if not isinstance(value, str) or not value:
        raise BadAnswerError(f"expected {name} as a text, got {value!r:.80}")
    return value


def _optional_text(values: Mapping[str, object], name: str) -> str:
    return _text(values, name) if values.get(name) else ""


def _count(values: Mapping[str, object], name: str, *, least: int = 1) -> int:
    return _whole(values.get(name), name, least=least)


def _whole(value: object, name: str, *, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise BadAnswerError(f"expected {name} as a whole number >= {least}, got {value!r:.80}")
    return value


def _heads(value: object) -> tuple[HeadName, ...]:
    names = value if isinstance(value, list) else []
    heads = tuple(head for head in HEAD_NAMES if head in names)
    if not heads:
        raise BadAnswerError(
            f"expected heads as some of {', '.join(HEAD_NAMES)}, got {value!r:.80}"
        )
    return heads


def _former(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise BadAnswerError(f"expected former_fingerprints as a list, got {value!r:.80}")
    return tuple(value)
