"""A checkpoint's `tokenizer.json`, read and checked.

What lives here: reading the file with the package `tokenizers`, and refusing what would make it
fail, or take all memory, with the first text. What does not: cutting texts (`tokenization`).
"""

from __future__ import annotations

import base64
import json
import re

from tokenizers import Tokenizer as RustTokenizer

from unified_embeddings.models.checkpoint import Checkpoint

_MOST_GROWTH = 64
"""Times that a text may grow before it is split into tokens. Real files replace a character by
another, or by two."""
_MOST_SPECIAL_TOKENS = 64
"""Special tokens that may be added to a text. Real models add two."""
_CHARACTER_MAP = re.compile(rb'"precompiled_charsmap"\s*:\s*"([^"]*)"')
_ESCAPED_ASCII = re.compile(rb"\\u00[2-7]")
_PROBE = "A fox, 1 dog; 犬 and ünïcode"


def read_tokenizer(checkpoint: Checkpoint) -> RustTokenizer:
    """Read a model's tokenizer.

    Raises:
        ModelLoadError: If the file is unreadable, does not fit the model, or would make texts grow
            without bounds.
    """
    path = checkpoint.tokenizer_file
    with checkpoint.explain(f"{path.name} is not a tokenizer file"):
        content = path.read_bytes()
        _check_character_map(content)
        tokenizer = RustTokenizer.from_buffer(content)
        del content  # 17 MB for BGE-M3
        # The file may ask for padding to any length, which would be allocated.
        tokenizer.no_padding()
        tokenizer.no_truncation()
    tokens, rows = tokenizer.get_vocab_size(), checkpoint.integer("vocab_size")
    if tokens > rows:
        raise checkpoint.problem(
            f"tokenizer.json has {tokens} tokens, but the model only {rows}; they belong to "
            "different models"
        )
    added = tokenizer.num_special_tokens_to_add(is_pair=False)
    if not added:
        raise checkpoint.problem(
            "its tokenizer adds no special tokens, so that a blank text would have none at all"
        )
    if added > _MOST_SPECIAL_TOKENS:
        raise checkpoint.problem(f"its tokenizer adds {added} special tokens to every text")
    _check_growth(checkpoint, tokenizer)
    with checkpoint.explain("tokenizer.json fails with the first text"):
        tokenizer.encode(_PROBE)
    return tokenizer


def _check_character_map(content: bytes) -> None:
    """Refuse a map of characters that announces more bytes than it has.

    The Rust side allocates what is announced, and ends the process where there is no such memory.

    Raises:
        ValueError: If there is one.
    """
    if _ESCAPED_ASCII.search(content):  # a name may be written in a way that is not found below
        content = json.dumps(json.loads(content)).encode()
    for match in _CHARACTER_MAP.finditer(content):
        encoded = match[1]
        announced = int.from_bytes(base64.b64decode(encoded[:8])[:4], "little")
        if announced > len(encoded):
            raise ValueError(f"a map of {len(encoded):,} characters announces {announced:,} bytes")


def _check_growth(checkpoint: Checkpoint, tokenizer: RustTokenizer) -> None:
    """Refuse replacements that make a text longer, one after the other, by powers of two."""
    if tokenizer.normalizer is None:
        return
    with checkpoint.explain("tokenizer.json has a normalizer that cannot be read"):
        settings = json.loads(tokenizer.normalizer.__getstate__())
    growth = _growth_of(settings)
    if growth > _MOST_GROWTH:
        raise checkpoint.problem(
            f"the replacements in tokenizer.json make a text up to {growth:,.0f} times as long"
        )


def _growth_of(settings: object) -> float:
    """Return how many times as long a text can become."""
    if not isinstance(settings, dict):
        return 1
    growth = 1.0
    for part in settings.get("normalizers") or ():
        growth *= _growth_of(part)
    if settings.get("type") == "Replace":
        pattern = settings.get("pattern")
        literal = pattern.get("String", "") if isinstance(pattern, dict) else ""
        # A regular expression, or nothing at all, may match between any two characters.
        content = len(str(settings.get("content", "")))
        growth *= max(1, content / len(literal) if literal else 1 + content)
    return growth
