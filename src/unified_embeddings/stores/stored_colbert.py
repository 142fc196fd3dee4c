"""How a collection stores ColBERT vectors: pooled by what, in how many bits, and where.

What lives here: the choice, Qdrant's parameters for it, and the choice read back from a collection.
What does not: pooling (`embedders.pooling`), and the other vectors (`schema`).

The data types `turbo4` and `turbo8` are all that is stored. Beside vectors that are quantised in
Qdrant's own sense ("int8", "binary") the originals stay on the disk.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from qdrant_client import models as qm

from unified_embeddings.errors import InputError, StoreError
from unified_embeddings.validation import require_whole_number

COLBERT_VECTOR = "text-colbert"
RECORD_KEY = "colbert"
"""Key of our record in a collection's metadata under which the pooling is recorded."""

Quantisation: TypeAlias = Literal["float16", "int8", "binary", "turbo8", "turbo4"]
ColbertName: TypeAlias = Literal["full", "pooled"]
"""Short forms of a `StoredColbert`."""

_LARGEST_POOL = 4
"""Beyond it a text loses too much to be worth its place."""
_DATATYPES: Mapping[str, qm.Datatype] = {
    "float16": qm.Datatype.FLOAT16,
    "turbo8": qm.Datatype.TURBO8,
    "turbo4": qm.Datatype.TURBO4,
}
_SINCE: Mapping[str, str] = {"turbo8": "1.20", "turbo4": "1.19"}
"""Quantisation → the version of Qdrant that has it."""
_LAYERS: Mapping[str, qm.QuantizationConfig] = {
    "int8": qm.ScalarQuantization(
        scalar=qm.ScalarQuantizationConfig(type=qm.ScalarType.INT8, always_ram=True)
    ),
    "binary": qm.BinaryQuantization(binary=qm.BinaryQuantizationConfig(always_ram=True)),
}
"""Quantisations beside which Qdrant keeps the originals."""
_FULL = "full"
_POOLED = "pooled"


@dataclass(frozen=True)
class StoredColbert:
    """How a collection stores a text's ColBERT vectors.

    The defaults lose 0.24% of nDCG@10 and take a fifteenth of the bytes (mini-m3 on XQuAD-R; see
    docs/late-interaction.md).

    Args:
        pool: How many rows become one, from 1 to 4.
        quantisation: "turbo4" and "turbo8" store 4 and 8 bits of a number and nothing else; a
            server needs Qdrant 1.19 for the first, 1.20 for the second. "float16" stores 16 bits.
            "int8" and "binary" score by 8 bits and 1 bit of a number in memory, and keep the
            originals on the disk; the embedded store makes them in `optimize`. Candidates are
            scored anew from the originals of "binary", so it gains nothing here. None stores 32
            bits.
        on_disk: Whether the vectors themselves stay on the disk; None leaves it to Qdrant, except
            beside "int8" and "binary", where it is True.

    Raises:
        InputError: If a value is none of these.

    Example:
        >>> from unified_embeddings import StoredColbert
        >>> StoredColbert(pool=3, quantisation="turbo8")
        StoredColbert(pool=3, quantisation='turbo8', on_disk=None)
    """

    pool: int = 2
    quantisation: Quantisation | None = "turbo4"
    on_disk: bool | None = None

    def __post_init__(self) -> None:
        pool = require_whole_number("pool", self.pool)
        if pool > _LARGEST_POOL:
            raise InputError(f"pool must be from 1 to {_LARGEST_POOL}, got {pool}")
        object.__setattr__(self, "pool", pool)  # NumPy's integers are not JSON
        if self.quantisation not in (None, *get_args(Quantisation)):
            raise InputError(
                f"quantisation must be one of {', '.join(get_args(Quantisation))} or None, got "
                f"{self.quantisation!r:.80}"
            )
        if not isinstance(self.on_disk, bool | None):
            raise InputError(f"on_disk must be True, False or None, got {self.on_disk!r:.80}")

    def __str__(self) -> str:
        pooled = "not pooled" if self.pool == 1 else f"pooled by {self.pool}"
        return f"{pooled}, {self.quantisation or 'float32'}"

    @property
    def flags(self) -> str:
        """Return the options of the command `add-vectors` that store vectors in this way."""
        flags = f"--colbert {_FULL if self.quantisation is None else _POOLED}"
        like = FULL if self.quantisation is None else StoredColbert()
        if self.pool != like.pool:
            flags += f" --pool {self.pool}"
        if self.quantisation != like.quantisation:
            flags += f" --quantisation {self.quantisation}"
        return flags

    @property
    def advice(self) -> str:
        """Return what to do where Qdrant refuses the vectors; "" where every version takes them."""
        version = _SINCE.get(self.quantisation or "")
        if version is None:
            return ""
        return (
            f". {self.quantisation} needs Qdrant {version}: if the server is older, upgrade it, or "
            "give StoredColbert(quantisation='int8')"
        )

    @property
    def record(self) -> dict[str, object]:
        """Return what the collection's metadata records.

        Its parameters do not show the pooling, and in local mode not always the data type.
        """
        return {"pool": self.pool, "quantisation": self.quantisation}

    def params(self, width: int) -> qm.VectorParams:
        """Return Qdrant's parameters of the vectors: scored row by row, and without an index.

        They rerank what the other vectors find, for which an index over every row would be of no
        use.

        Args:
            width: Numbers in a row.
        """
        quantisation = self.quantisation or ""
        on_disk = self.on_disk
        if quantisation in _LAYERS and on_disk is None:
            on_disk = True
        return qm.VectorParams(
            size=width,
            distance=qm.Distance.COSINE,
            multivector_config=qm.MultiVectorConfig(comparator=qm.MultiVectorComparator.MAX_SIM),
            hnsw_config=qm.HnswConfigDiff(m=0),
            datatype=_DATATYPES.get(quantisation),
            quantization_config=_LAYERS.get(quantisation),
            on_disk=on_disk,
        )


FULL = StoredColbert(pool=1, quantisation=None)
"""Every row in float32: what reranking without stored vectors computes."""


def require_colbert(value: StoredColbert | ColbertName) -> StoredColbert:
    """Return the choice that a short form stands for, or the choice itself.

    Raises:
        InputError: If it is neither.
    """
    if isinstance(value, StoredColbert):
        return value
    if value == _FULL:
        return FULL
    if value == _POOLED:
        return StoredColbert()
    raise InputError(f"colbert= takes {_POOLED!r}, {_FULL!r} or a StoredColbert, got {value!r:.80}")


def read_stored_colbert(
    info: qm.CollectionInfo, record: Mapping[str, object]
) -> StoredColbert | None:
    """Return how a collection stores ColBERT vectors; None if it stores none.

    Where nothing is recorded, an earlier version added the vectors, which did not pool.

    Args:
        info: What Qdrant reports about the collection.
        record: What its metadata records of ours.

    Raises:
        InputError: If that cannot be used.
    """
    vectors = info.config.params.vectors
    params = vectors.get(COLBERT_VECTOR) if isinstance(vectors, Mapping) else None
    if params is None or params.multivector_config is None:
        return None
    recorded = record.get(RECORD_KEY)
    if isinstance(recorded, Mapping):
        try:
            return StoredColbert(
                pool=recorded.get("pool", 1),
                quantisation=recorded.get("quantisation"),
                on_disk=params.on_disk,
            )
        except InputError as error:
            raise InputError(
                "the collection's metadata records ColBERT vectors that this version cannot use, "
                f"as a later one may write them: {error.problem}; upgrade unified-embeddings"
            ) from error
    return StoredColbert(pool=1, quantisation=_read_quantisation(params), on_disk=params.on_disk)


def check_stored_colbert(name: str, wanted: StoredColbert, stored: StoredColbert | None) -> None:
    """Refuse a collection that stores ColBERT vectors in another way than is asked for.

    Raises:
        StoreError: If it stores none, or others.
    """
    if stored is None:
        raise StoreError(
            name,
            "checking",
            "colbert= is given, but the collection exists and stores no ColBERT vectors; add them "
            f"to its points: unified-embeddings add-vectors {shlex.quote(name)} {wanted.flags}",
        )
    if (stored.pool, stored.quantisation) != (wanted.pool, wanted.quantisation):
        raise StoreError(
            name,
            "checking",
            f"its ColBERT vectors are stored {stored}, and colbert= asks for {wanted}; leave it "
            "out to take the collection's own way, or index the documents again into a new "
            "collection",
        )


def _read_quantisation(params: qm.VectorParams) -> Quantisation | None:
    for name in get_args(Quantisation):
        if name in _DATATYPES and params.datatype == _DATATYPES[name]:
            quantisation: Quantisation = name
            return quantisation
    match params.quantization_config:
        case qm.ScalarQuantization():
            return "int8"
        case qm.BinaryQuantization():
            return "binary"
    return None
