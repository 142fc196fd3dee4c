"""Conditions as people write them: what they say, and whether a collection can meet them.

What lives here: reading texts such as `year>=2020`, and rejecting a key that no passage has or an
order that its values do not have. What does not: what a filter means (`filters`).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from llama_index.core.vector_stores.types import (
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)

from unified_embeddings.errors import InputError
from unified_embeddings.llama import filter_numbers
from unified_embeddings.llama.fingerprinted_store import FingerprintedStore
from unified_embeddings.llama.known_keys import describe_unknown_key, has_key, is_empty, none_of

Value: TypeAlias = str | bool | int | float

_CONDITION = re.compile(r"^\s*([^=!<>\s][^=!<>]*)(!=|>=|<=|==?|>|<)(.*)$", re.DOTALL)
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,18})(?P<fraction>\.[0-9]*)?(?P<exponent>[eE][+-]?[0-9]+)?")
"""Not what float() reads, as it takes "nan" and "1_000" too. "007" is a code, not a number, and
20 digits are more than Qdrant's integers have."""
_EQUALITIES = {"=": FilterOperator.IN, "==": FilterOperator.IN, "!=": FilterOperator.NIN}
_ORDERS = frozenset((">", ">=", "<", "<="))
_PATH_KEY = "file_path"
"""The key under which `index` stores a file's absolute path."""


@dataclass(frozen=True)
class Condition:
    """What one condition says.

    Attributes:
        text: As it was given, for messages.
        key: A metadata key.
        filter: The condition as LlamaIndex's filter.
        option: What messages call it.
    """

    text: str
    key: str
    filter: MetadataFilter
    option: str = "--filter"

    @property
    def is_order(self) -> bool:
        """Whether it compares in order, which numbers alone have."""
        return self.filter.operator not in _EQUALITIES.values()


def parse_conditions(texts: Sequence[str], *, option: str = "--filter") -> list[Condition]:
    """Read texts such as `year>=2020`.

    In an equality a value stands for the text as written and for the number or truth value that it
    reads as: `page_label=2` finds "2" and 2. In quotes it is the text alone. A relative `file_path`
    also stands for the absolute one.

    Args:
        texts: The conditions.
        option: What messages call each of them.

    Raises:
        InputError: If a text is not a condition, or compares a text in order.
    """
    return [_parse_condition(text, option) for text in texts]


def to_filters(conditions: Sequence[Condition]) -> MetadataFilters | None:
    """Return conditions as one filter that holds where all of them hold; None without any."""
    if not conditions:
        return None
    return MetadataFilters(filters=[condition.filter for condition in conditions])


def check_conditions(
    conditions: Sequence[Condition], store: FingerprintedStore, *, note: Callable[[str], None]
) -> None:
    """Reject conditions that hold for no passage whatever their value.

    Args:
        conditions: What is asked for.
        store: Over the collection.
        note: Told where a key holds texts for some passages and numbers for others, and only the
            numbers are compared.

    Raises:
        InputError: If a key is unknown; the nearest known ones are named. If numbers are asked for
            and the key holds none.
        StoreError: If Qdrant fails.
    """
    for condition in conditions:
        if not has_key(store, condition.key):
            problem = describe_unknown_key(store, condition.key)
            if problem is not None:
                raise InputError(f"{condition.option} {condition.text!r}: {problem}")
        elif condition.is_order:
            _check_has_numbers(condition, store, note)


def _check_has_numbers(
    condition: Condition, store: FingerprintedStore, note: Callable[[str], None]
) -> None:
    is_number = _filter(condition.key, FilterOperator.GTE, -sys.float_info.max)
    others = store.get_nodes(filters=none_of(is_empty(condition.key), is_number), limit=1)
    if not others:
        return
    example = others[0].metadata.get(condition.key)
    if not store.get_nodes(filters=MetadataFilters(filters=[is_number]), limit=1):
        raise InputError(
            f"{condition.option} {condition.text!r} compares numbers, and {condition.key!r} holds "
            f"none but values such as {example!r}; compare with = or != instead"
        )
    note(
        f"{condition.option} {condition.text!r} leaves out passages whose {condition.key!r} is not "
        f"a number, such as {example!r}"
    )


def _filter(key: str, operator: FilterOperator, value: object) -> MetadataFilter:
    """Make a filter, also of values of several types, which the constructor does not take."""
    return MetadataFilter.model_construct(key=key, operator=operator, value=value)


# --- reading ------------------------------------------------------------------------------------


def _parse_condition(text: str, option: str) -> Condition:
    match = _CONDITION.match(text)
    if match is None:
        raise InputError(
            f"{option} {text!r} should be KEY=VALUE (or != > >= < <=), as in "
            f"{option} 'file_size>10'"
        )
    key, sign, written = (part.strip() for part in match.groups())
    if sign in _ORDERS:
        number = _to_number(written)
        if number is None:
            raise InputError(
                f"{option} {text!r}: {sign} on {key!r} compares numbers, got {written!r}; texts "
                "are compared with = or !="
            )
        return Condition(text, key, _filter(key, FilterOperator(sign), number), option)
    values = _values_of(written)
    if key == _PATH_KEY:
        values += _paths_of(str(values[0]))
    return Condition(text, key, _filter(key, _EQUALITIES[sign], values), option)


def _values_of(written: str) -> list[Value]:
    """Return the values that a condition's right side may stand for, the text first."""
    if len(written) > 1 and written[0] == written[-1] and written[0] in "'\"":
        return [written[1:-1]]
    values: list[Value] = [written]
    number = _to_number(written)
    if number is not None:
        values.append(number)
    if written.lower() in ("true", "false"):
        values.append(written.lower() == "true")
    return values


def _to_number(text: str) -> float | None:
    """Return the number that a text reads as; None if it is none, or one beyond 64 bits."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    number = float(text) if match["fraction"] or match["exponent"] else int(text)
    return number if filter_numbers.fits(number) else None


def _paths_of(text: str) -> list[Value]:
    """Return the absolute paths of a file, as it is named and with its links followed."""
    path = os.path.expanduser(text)  # noqa: PTH111  # Path's raises where there is no such user
    return [os.path.abspath(path), os.path.realpath(path)]  # noqa: PTH100  # Path.resolve() follows
