"""The forms in which a text may have been embedded, and how well each explains stored vectors.

What lives here: the text with metadata, without, cut, or after a prefix, and the test of one form.
What does not: the order in which they are tried and what follows (`adoption`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from llama_index.core.schema import MetadataMode

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.embedders.values import SPECIAL_TOKENS
from unified_embeddings.llama.layouts import SourceText
from unified_embeddings.migration.evidence import Evidence, compare_dense, compare_sparse
from unified_embeddings.migration.probes import Probe
from unified_embeddings.models.catalogue import MODELS
from unified_embeddings.models.spec import ModelSpec
from unified_embeddings.types import HeadName, Role, Text

_USUAL_CUTS = (512, 256, 128)
"""Lengths in tokens at which software cuts texts unless told otherwise."""


@dataclass(frozen=True)
class Form:
    """What may have been embedded for each probe.

    Attributes:
        description: In words.
        texts: One for each probe, as text or as token ids.
        role: As what they are embedded.
        advice: What to do if they were embedded in this form, which the model's own documents are
            not; empty for its own forms.
    """

    description: str
    texts: tuple[Text, ...]
    role: Role = "document"
    advice: str = ""


@dataclass(frozen=True)
class FormTest:
    """How well a form explains the stored vectors.

    Attributes:
        form: The form.
        dense: How the dense vectors compare; None if they were not compared.
        sparse: How the sparse vectors compare; None if they were not compared.
    """

    form: Form
    dense: Evidence | None
    sparse: Evidence | None

    @property
    def problem(self) -> str:
        """Why the vectors are not the model's; empty if they are."""
        problems = []
        for evidence in (self.dense, self.sparse):
            if evidence is not None and evidence.problem:
                problems.append(f"{evidence.head} vectors: {evidence.problem}")
        return "; ".join(problems)

    @property
    def score(self) -> float:
        """The cosine that forms are ranked by: of the dense vectors, if they were compared."""
        return self._leading.cosine

    @property
    def kinship(self) -> float:
        """How much the vectors have to do with each other at all."""
        return self._leading.centred

    @property
    def _leading(self) -> Evidence:
        evidence = self.dense or self.sparse
        assert evidence is not None  # At least one head is compared.
        return evidence


def compare_form(
    embedder: TextEmbedder, form: Form, probes: Sequence[Probe], heads: Sequence[HeadName]
) -> FormTest:
    """Embed the probes in a form and compare the vectors with those that are stored.

    Args:
        embedder: The embedder that may have made the stored vectors.
        form: What it embeds.
        probes: The points, in the form's order.
        heads: The heads to compare, at least one.
    """
    embeddings = embedder.encode(form.texts, role=form.role, heads=heads)
    dense = sparse = None
    if "dense" in heads:
        assert embeddings.dense is not None
        stored = np.array([probe.dense for probe in probes], dtype=np.float64)
        dense = compare_dense(stored, embeddings.dense.astype(np.float64))
    if "sparse" in heads:
        assert embeddings.sparse is not None
        stored_weights, own_weights = [], []
        for probe, weights in zip(probes, embeddings.sparse, strict=True):
            if probe.sparse is not None:
                stored_weights.append(probe.sparse)
                own_weights.append(weights)
        sparse = compare_sparse(stored_weights, own_weights)
    return FormTest(form, dense, sparse)


def usual_forms(sources: Sequence[SourceText]) -> list[Form]:
    """Return the forms in which LlamaIndex and others embed, without those that are the same."""
    all_metadata = [source.node.get_content(metadata_mode=MetadataMode.ALL) for source in sources]
    texts_by_form = {
        # First, so that it has this name where there are no metadata.
        "the text alone": [source.bare_text for source in sources],
        "the text with the metadata meant for it": [source.text for source in sources],
        "the text with all metadata": all_metadata,
    }
    forms: dict[tuple[str, ...], Form] = {}
    for description, text_list in texts_by_form.items():
        texts = tuple(text_list)
        forms.setdefault(texts, Form(description, texts))
    return list(forms.values())


def cut_forms(embedder: TextEmbedder, form: Form) -> Iterator[Form]:
    """Yield a form's texts cut to the usual lengths; nothing where they are no longer."""
    prefix = _prefix_of(embedder)
    token_ids = _tokenise(embedder, [prefix + str(text) for text in form.texts])
    longest = max((len(ids) for ids in token_ids), default=0) + SPECIAL_TOKENS
    for length in _USUAL_CUTS:
        if length < min(longest, embedder.max_length):
            cut_ids = tuple(ids[: length - SPECIAL_TOKENS] for ids in token_ids)
            yield Form(f"{form.description}, cut to {length} tokens", cut_ids)


def foreign_forms(embedder: TextEmbedder, form: Form) -> Iterator[Form]:
    """Yield a form's texts with other prefixes than the model puts before documents."""
    spec = _spec_of(embedder)
    own_prefix = _prefix_of(embedder)
    prefixes = {""}
    for known in (*MODELS.values(), spec):
        if known is not None:
            prefixes |= {known.query_prefix, known.document_prefix}
    if spec is not None and spec.query_adapter != spec.document_adapter:
        yield Form(
            f"{form.description}, embedded as a query",
            form.texts,
            role="query",
            advice="index the documents again: as documents they have other vectors",
        )
    for prefix in sorted(prefixes - {own_prefix}):
        texts = [prefix + str(text) for text in form.texts]
        prefixed: tuple[Text, ...] = tuple(texts)
        if own_prefix:
            # As token ids, which the model's own prefix is not put before.
            prefixed = tuple(_tokenise(embedder, texts))
        described = f"the prefix {prefix!r}" if prefix else "no prefix"
        yield Form(
            f"{form.description}, after {described}",
            prefixed,
            advice=(
                f"this model puts {repr(own_prefix) if own_prefix else 'nothing'} before "
                f"documents; describe it by a TOML file with document_prefix = "
                f"{_toml_text(prefix)}, and give that as --model"
            ),
        )


def _toml_text(text: str) -> str:
    return f'"{text}"'


def _spec_of(embedder: TextEmbedder) -> ModelSpec | None:
    """Return the spec of the dense model; None where there is no model in this process."""
    for model in embedder.models:
        spec = getattr(model, "spec", None)
        if isinstance(spec, ModelSpec):
            return spec
    return None


def _prefix_of(embedder: TextEmbedder) -> str:
    spec = _spec_of(embedder)
    return "" if spec is None else spec.document_prefix


def _tokenise(embedder: TextEmbedder, texts: Sequence[str]) -> list[tuple[int, ...]]:
    embedder.announce(texts)
    return [embedder.require_token_ids(embedder.tokenise(text)) for text in texts]
