"""Which share of the questions a question belongs to: a place between 0 and 1, always the same.

What lives here: the place of a question or of the tenant who asks it. What does not: what is done
with it (`transition`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from llama_index.core.schema import QueryBundle, QueryType

from unified_embeddings.errors import InputError


@dataclass
class TenantQuery(QueryBundle):
    """A question with the tenant (customer, user, session) who asks it.

    With it the share of a TransitionRetriever is one of tenants: each sees one of the two indexes
    only, whatever it asks. What makes a new bundle of it, such as HyDE, loses the tenant.

    Attributes:
        tenant: Any text that stays the same; None chooses by the question's text.

    Example:
        >>> from unified_embeddings.retrievers.shares import TenantQuery
        >>> TenantQuery("Which foxes jump?", tenant="acme").tenant
        'acme'
    """

    tenant: str | None = None


def place_of(bundle: QueryBundle) -> float:
    """Return a question's place between 0 and 1, 1 excluded; the same in every process.

    It is a hash of the tenant, or else of the question's text. Python's own `hash` of a text
    differs from process to process. 53 bits are what a float holds exactly, so that no place is
    rounded up to 1.
    """
    tenant = bundle.tenant if isinstance(bundle, TenantQuery) else None
    key = bundle.query_str if tenant is None else tenant
    digest = hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def to_bundle(query: QueryType, tenant: str | None) -> QueryBundle:
    """Return a question as a bundle, with the tenant if there is one.

    Raises:
        InputError: If the question or the tenant is not a text.
    """
    if isinstance(query, str):
        query = QueryBundle(query)
    if not isinstance(query, QueryBundle) or not isinstance(query.query_str, str):
        raise InputError(f"a query must be one str or QueryBundle, got {type(query).__name__}")
    if tenant is None:
        return query
    if not isinstance(tenant, str):
        raise InputError(f"a tenant must be a str, got {type(tenant).__name__}")
    return TenantQuery(
        query_str=query.query_str,
        image_path=query.image_path,
        custom_embedding_strs=query.custom_embedding_strs,
        embedding=query.embedding,
        tenant=tenant,
    )


def require_share(share: object) -> float:
    """Return a share as a float, and refuse everything else.

    Raises:
        InputError: If it is not a number from 0 to 1.
    """
    # A comparison with NaN is false, so it is refused too.
    if not isinstance(share, int | float) or isinstance(share, bool) or not 0 <= share <= 1:
        raise InputError(f"share must be a number from 0 (none) to 1 (all), got {share!r}")
    return float(share)
