"""What is wrong with a request's fields, in one plain sentence each.

What lives here: the fields whose value may be of several types, and the words for what pydantic
finds. What does not: which fields a contract has (`routes`), the envelope around a message
(`envelopes`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeAlias

from pydantic import PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from unified_embeddings.serving.json_fields import json_type

InputValue: TypeAlias = "str | list[str] | list[int] | list[list[int]]"

TEI_BODY = "TEI's body"
TEXT_BODY = "the body with one text"
SIMILARITY_BODY = "a comparison's body"
RERANK_BODY = "vLLM's body"
"""How pydantic tells the bodies of one route apart; no part of a field's name."""

_KINDS = {
    "string_type": "a string",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
"""pydantic's type of error → what was expected."""
_BOUNDS = {"greater_than_equal": (">=", "ge"), "less_than_equal": ("<=", "le")}
_NOT_PARTS = ("body", TEI_BODY, TEXT_BODY, SIMILARITY_BODY, RERANK_BODY)
_MOST_DIGITS = 20
_MOST_PROBLEMS = 3


def describe_validation(errors: Sequence[Any]) -> str:
    """Return what is wrong with a request's body, by field, without the texts that came.

    Args:
        errors: As pydantic and FastAPI list them, at least one.
    """
    problems = [_describe(error) for error in errors[:_MOST_PROBLEMS]]
    if len(errors) > len(problems):
        problems.append(f"and {len(errors) - len(problems)} more")
    return "; ".join(problems)


def _describe(error: Mapping[str, Any]) -> str:
    kind, name = error["type"], _name_of(error["loc"])
    context = error.get("ctx", {})
    if kind == "json_invalid":
        return f"the body is not JSON: {context['error']}"
    if kind == "missing":
        return f"{name} is missing" if name else "the body is missing; send JSON"
    name = name or "the body"
    if kind in _KINDS:
        return f"{name} must be {_KINDS[kind]}, got {show(error['input'])}"
    if kind in _BOUNDS:
        sign, bound = _BOUNDS[kind]
        return f"{name} must be {sign} {context[bound]}, got {show(error['input'])}"
    if kind == "literal_error":
        return f"{name} must be {context['expected']}, got {show(error['input'])}"
    if kind == "value_error":
        return str(context["error"])
    if kind == "refused":
        return f"{name}{error['msg']}"
    return f"{name}: {error['msg']}"


def _name_of(location: Sequence[str | int]) -> str:
    """Return a field's name as JSON's readers write it: `documents[2].text`."""
    name = ""
    for part in location:
        if part in _NOT_PARTS:
            continue
        if isinstance(part, int):
            name += f"[{part}]"
        else:
            name += f".{part}" if name else part
    return name


def show(value: object) -> str:
    """Return a number as it came, and of anything else only what it is: it may be a whole text."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and len(str(value)) <= _MOST_DIGITS:
        return str(value)
    return json_type(value)


def _refusal(problem: str) -> PydanticCustomError:
    """Return the error whose message is the field's name and `problem`."""
    return PydanticCustomError("refused", "{problem}", {"problem": problem})


def check_inputs(value: object) -> InputValue:
    """Return one text or several, or their token ids.

    Raises:
        PydanticCustomError: If it is neither; the item that does not fit is named.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise _refusal(
            " must be a text, a list of texts, a list of token ids or a list of such lists, "
            f"got {show(value)}"
        )
    if not value:
        return value
    first = value[0]
    if isinstance(first, str):
        for index, item in enumerate(value):
            if not isinstance(item, str):
                raise _refusal(f"[{index}] must be a text as [0] is, got {show(item)}")
    elif isinstance(first, list):
        for index, item in enumerate(value):
            if not isinstance(item, list):
                raise _refusal(f"[{index}] must be a list as [0] is, got {show(item)}")
            _check_token_ids(item, f"[{index}]")
    else:
        _check_token_ids(value, "")
    return value


def _check_token_ids(items: Sequence[object], where: str) -> None:
    expected = "a token id, a whole number >= 0" if where else "a text or a token id"
    for index, item in enumerate(items):
        # True is an int to Python, and no token id.
        if type(item) is not int or item < 0:
            raise _refusal(f"{where}[{index}] must be {expected}, got {show(item)}")


def check_texts(value: object) -> str | list[str]:
    """Return one text or several.

    Raises:
        PydanticCustomError: If it is neither; the item that is not a text is named.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise _refusal(f" must be a text or a list of texts, got {show(value)}")
    for index, item in enumerate(value):
        if not isinstance(item, str):
            raise _refusal(f"[{index}] must be a text, got {show(item)}")
    return value


def check_documents(value: object) -> list[str]:
    """Return the texts of documents that are texts, or objects with a text.

    Raises:
        PydanticCustomError: If one is neither; it is named.
    """
    if not isinstance(value, list):
        raise _refusal(f" must be a list of texts, got {show(value)}")
    texts = []
    for index, item in enumerate(value):
        text = item.get("text") if isinstance(item, dict) else item
        if not isinstance(text, str):
            raise _refusal(
                f'[{index}] must be a text, or an object whose "text" is one, got {show(item)}'
            )
        texts.append(text)
    return texts


_TEXTS_SCHEMA = {"type": "array", "items": {"type": "string"}}
_IDS_SCHEMA = {"type": "array", "items": {"type": "integer", "minimum": 0}}

Inputs = Annotated[
    InputValue,
    PlainValidator(check_inputs),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {**_TEXTS_SCHEMA, "minItems": 1},
                {**_IDS_SCHEMA, "minItems": 1},
                {"type": "array", "items": _IDS_SCHEMA, "minItems": 1},
            ]
        }
    ),
]
"""One text or several, or their token ids."""

Texts = Annotated[
    str | list[str],
    PlainValidator(check_texts),
    WithJsonSchema({"anyOf": [{"type": "string"}, _TEXTS_SCHEMA]}),
]
"""One text or several."""

Documents = Annotated[
    list[str],
    PlainValidator(check_documents),
    WithJsonSchema(
        {
            "type": "array",
            "items": {
                "anyOf": [
                    {"type": "string"},
                    {
                        "type": "object",
                        "properties": {"text": {"type": "string"}},
                        "required": ["text"],
                    },
                ]
            },
        }
    ),
]
"""Texts, or objects with a text, as Cohere's first version and Jina allow them."""
