"""The embedder of texts that a pipeline's options ask for: in this process, or over HTTP."""

from __future__ import annotations

from unified_embeddings.cache.embedding_cache import EmbeddingCache
from unified_embeddings.config.options import PipelineOptions
from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.embedders.factory import make_embedder


def make_text_embedder(options: PipelineOptions, cache: EmbeddingCache) -> TextEmbedder:
    """Make the embedder of texts; nothing is loaded or asked yet.

    Args:
        options: Those of a pipeline whose text model is not one of images too.
        cache: Where its vectors are kept.

    Raises:
        InputError: If an option is not usable.
    """
    embedder = _make_document_embedder(options, cache)
    if options.query_backend != "runpod":
        return embedder
    from unified_embeddings.embedders.runpod_queries import RunPodEndpoint, RunPodQueryEmbedder

    assert options.runpod_api_key is not None
    assert options.runpod_query_endpoint_id is not None
    endpoint = RunPodEndpoint(
        options.runpod_query_endpoint_id, api_key=options.runpod_api_key, url=options.runpod_url
    )
    return RunPodQueryEmbedder(embedder, endpoint)


def _make_document_embedder(options: PipelineOptions, cache: EmbeddingCache) -> TextEmbedder:
    if options.url is None:
        return make_embedder(options.choice, **options.for_texts(cache))
    from unified_embeddings.embedders.remote import RemoteEmbedder

    model = None if options.model_choice is None else options.choice_name
    return RemoteEmbedder(options.url, api_key=options.api_key, model=model, cache=cache)
