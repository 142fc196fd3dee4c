"""Reading the fields of a JSON object that a stranger sent.

What lives here: checks that name the field, what came and what to send instead. What does not: the
contracts that are made of such fields (`contracts`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from unified_embeddings.errors import InputError
from unified_embeddings.types import HEAD_NAMES, HeadName
from unified_embeddings.validation import require_whole_number

Choice = TypeVar("Choice", bound=str)

_SHOWN_NAMES = 5


def json_type(value: object) -> str:
    """Return what JSON calls a value, with its article."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, dict):
        return "an object"
    return type(value).__name__


def require_object(value: object, name: str) -> Mapping[str, object]:
    """Return a JSON object.

    Raises:
        InputError: If it is something else.
    """
    if not isinstance(value, dict):
        raise InputError(f"{name} must be a JSON object, got {json_type(value)}")
    return value


def refuse_unknown(fields: Mapping[str, object], known: Sequence[str], owner: str) -> None:
    """Refuse fields that would have no effect, since they may be misspelt.

    Args:
        fields: The object.
        known: The fields that it may have.
        owner: Whose fields they are, for the message.

    Raises:
        InputError: If there are others; the first few are named.
    """
    unknown = [repr(name)[:80] for name in fields if name not in known]
    if unknown:
        names = ", ".join(unknown[:_SHOWN_NAMES])
        if len(unknown) > _SHOWN_NAMES:
            names += f" and {len(unknown) - _SHOWN_NAMES} more"
        raise InputError(f"{owner} has no field {names}; its fields are {', '.join(known)}")


def read_text(value: object, name: str) -> str:
    """Return a text: a string of valid Unicode.

    Raises:
        InputError: If it is something else, or holds a lone surrogate.
    """
    if not isinstance(value, str):
        raise InputError(f"{name} must be a string, got {json_type(value)}")
    _require_unicode(value, name)
    return value


def read_texts(fields: Mapping[str, object], name: str) -> tuple[str, ...]:
    """Return the texts of a required field; none are fine.

    Raises:
        InputError: If the field is missing or not a list, or an item is not a string of valid
            Unicode. The error's `index` and its message tell which.
    """
    if name not in fields:
        raise InputError(f"{name} is missing; send a list of strings")
    value = fields[name]
    if not isinstance(value, list | tuple):
        advice = "; put it into a list" if isinstance(value, str) else ""
        raise InputError(f"{name} must be a list of strings, got {json_type(value)}{advice}")
    for index, item in enumerate(value):
        try:
            read_text(item, f"{name}[{index}]")
        except InputError as error:
            error.index = index
            raise
    return tuple(value)


def _require_unicode(text: str, name: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name} holds a lone surrogate at character {error.start}, which is not valid "
            r"Unicode; send both halves of the pair (as in \ud83d\ude00), or leave it out"
        ) from None


def read_flag(fields: Mapping[str, object], name: str, *, default: bool) -> bool:
    """Return an optional field that is true or false.

    Raises:
        InputError: If it is something else.
    """
    value = fields.get(name, default)
    if not isinstance(value, bool):
        raise InputError(
            f"{name} must be true or false, got {json_type(value)}; the default is "
            f"{str(default).lower()}"
        )
    return value


def check_whole_number(fields: Mapping[str, object], name: str) -> None:
    """Refuse an optional field unless it is a whole number from 1.

    Raises:
        InputError: If it is something else.
    """
    if name not in fields:
        return
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, int):
        shown = value if isinstance(value, float) else json_type(value)
        raise InputError(f"{name} must be a whole number >= 1, got {shown}")
    require_whole_number(name, value)


def read_choice(
    fields: Mapping[str, object], name: str, choices: Sequence[Choice], *, default: Choice
) -> Choice:
    """Return an optional field that is one of a few strings; the default if it is absent.

    Raises:
        InputError: If it is something else; the choices are named.
    """
    value = fields.get(name, default)
    for choice in choices:
        if choice == value:
            return choice
    shown = f"{value!r:.80}" if isinstance(value, str) else json_type(value)
    raise InputError(f"{name} must be {' or '.join(map(_quoted, choices))}, got {shown}")


def read_heads(
    fields: Mapping[str, object], available: Iterable[HeadName], *, default: tuple[HeadName, ...]
) -> tuple[HeadName, ...]:
    """Return the vectors asked for in the optional field `heads`, in the package's order.

    Args:
        fields: The object.
        available: The heads that the model gives.
        default: What an absent field asks for.

    Raises:
        InputError: If it is not a list of head names, asks for none, or for one that the model
            does not give. A head is never left out, or null, without a word.
    """
    value = fields.get("heads", default)
    all_names = ", ".join(map(_quoted, HEAD_NAMES))
    if not isinstance(value, list | tuple):
        raise InputError(f"heads must be a list of {all_names}, got {json_type(value)}")
    for index, item in enumerate(value):
        if item not in HEAD_NAMES:
            shown = f"{item!r:.80}" if isinstance(item, str) else json_type(item)
            problem = InputError(f"heads[{index}] must be one of {all_names}, got {shown}")
            problem.index = index
            raise problem
    if not value:
        raise InputError(f"heads asks for no vectors; name at least one of {all_names}")
    asked_for = tuple(head for head in HEAD_NAMES if head in value)
    require_available(asked_for, available)
    return asked_for


def require_available(heads: Iterable[HeadName], available: Iterable[HeadName]) -> None:
    """Refuse heads that the model does not give.

    Raises:
        InputError: If there are some; what the model gives is named.
    """
    model_heads = set(available)
    given = [head for head in HEAD_NAMES if head in model_heads]
    missing = [head for head in heads if head not in model_heads]
    if missing:
        raise InputError(
            f"this model gives {' and '.join(given)} vectors, no {' and no '.join(missing)} ones; "
            f'send "heads": [{", ".join(map(_quoted, given))}], or ask a model that gives them'
        )


def _quoted(name: str) -> str:
    return f'"{name}"'
