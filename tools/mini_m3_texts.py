"""Text to fit mini-m3's sparse head on: it comes with Python and its packages.

What lives here: finding passages of prose, and making pairs of a question and its answer from them.
What does not: the fit (`fit_mini_m3`).

The texts are the language reference, docstrings, and packages' long descriptions. They differ a
little from one Python release or package set to the next.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import random
import re
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data import topics

# Fixed lists, so that the text does not depend on what else happens to be installed.
DESCRIBED = (
    "aiohttp",
    "attrs",
    "fsspec",
    "httpx",
    "huggingface_hub",
    "Jinja2",
    "joblib",
    "llama-index-core",
    "networkx",
    "nltk",
    "numpy",
    "packaging",
    "pillow",
    "platformdirs",
    "protobuf",
    "psutil",
    "pydantic",
    "PyYAML",
    "qdrant-client",
    "regex",
    "requests",
    "rich",
    "safetensors",
    "scikit-learn",
    "scipy",
    "sentence-transformers",
    "SQLAlchemy",
    "sympy",
    "tenacity",
    "tiktoken",
    "tokenizers",
    "torch",
    "tqdm",
    "transformers",
    "typing_extensions",
    "urllib3",
)
"""Distributions whose long descriptions (READMEs) are read."""
DOCUMENTED = (
    "numpy",
    "scipy",
    "scikit-learn",
    "sympy",
    "networkx",
    "torch",
    "transformers",
    "nltk",
    "llama-index-core",
    "SQLAlchemy",
    "pillow",
    "joblib",
    "matplotlib",
    "pandas",
    "hypothesis",
    "pydantic",
    "fsspec",
    "mpmath",
    "aiohttp",
    "Jinja2",
    "setuptools",
    "pip",
)
"""Distributions whose docstrings are read."""
SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo"}
)
LEAST_WORDS = 30
"""Words of a passage: enough to take a sentence out and leave something to find."""
LARGEST_SHARE = 0.12
"""Share of the pairs that may come from one source."""


@dataclass(frozen=True)
class Pair:
    """A question and the passage that it was taken out of.

    Attributes:
        question: A sentence, or some words of one.
        passage: What is left around it.
    """

    question: str
    passage: str


# --- passages -----------------------------------------------------------------------------------


def split_paragraphs(text: str) -> Iterator[str]:
    """Yield the paragraphs of `text` that read as prose, white space collapsed.

    Kept: 8 to 200 words, at least 80% letters and spaces, no interactive session. Tables, code
    and option lists would otherwise dominate the document frequencies.
    """
    for block in re.split(r"\n\s*\n", text):
        paragraph = " ".join(block.split())
        words = paragraph.count(" ") + 1
        if not 8 <= words <= 200 or ">>>" in paragraph:
            continue
        letters = sum(char.isalpha() or char == " " for char in paragraph)
        if letters >= 0.8 * len(paragraph):
            yield paragraph


def docstrings(path: Path) -> Iterator[str]:
    """Yield the docstrings of a Python file; none if it cannot be parsed."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                yield docstring


def standard_library_docstrings() -> Iterator[str]:
    """Yield every docstring of the standard library's Python sources, in path order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if not SKIPPED_FOLDERS.intersection(path.relative_to(root).parts):
            yield from docstrings(path)


def package_docstrings(name: str) -> Iterator[str]:
    """Yield every docstring of an installed distribution, in path order; none if it is missing."""
    try:
        files = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError:
        print(f"  not installed, left out: {name}")
        return
    for file in sorted(files, key=str):
        is_test = {"test", "tests"}.intersection(file.parts) or file.name.startswith("test_")
        if file.suffix == ".py" and not is_test:
            yield from docstrings(Path(str(file.locate())))


def long_descriptions(names: Iterable[str]) -> Iterator[str]:
    """Yield the long description (README) in the METADATA of each installed distribution."""
    for name in names:
        try:
            metadata = importlib.metadata.metadata(name)
        except importlib.metadata.PackageNotFoundError:
            print(f"  not installed, left out: {name}")
            continue
        if "Description" in metadata:
            yield metadata["Description"]


def find_passages() -> dict[str, str]:
    """Return every distinct passage of prose, of at least 30 words → its source."""
    sources: dict[str, Iterable[str]] = {
        "language reference": (topics.topics[name] for name in sorted(topics.topics)),
        "standard library": standard_library_docstrings(),
        "package descriptions": long_descriptions(DESCRIBED),
    }
    sources.update((name, package_docstrings(name)) for name in DOCUMENTED)
    passages: dict[str, str] = {}
    for source, texts in sources.items():
        for text in texts:
            passage = " ".join(split_paragraphs(text))
            if len(passage.split()) >= LEAST_WORDS:
                passages.setdefault(passage, source)
    return passages


# --- pairs --------------------------------------------------------------------------------------


def make_pairs(passages: Mapping[str, str], count: int, *, seed: int = 0) -> list[Pair]:
    """Take a sentence out of each passage, as a question to what is left.

    So a question shares some words with its answer, and not others. The passages left are cut to
    lengths from 8 to 200 words, as evenly on a logarithmic scale as they come, so that the fit sees
    short and long documents. Three in ten questions are cut to 3 to 10 words.

    Args:
        passages: Passage → source. They are taken in the order of their digests: a fair sample of
            every source, and the same one whatever order the sources were read in.
        count: How many pairs to make, at most.
        seed: Of the random choices.
    """
    draw = random.Random(seed)
    counts: Counter[str] = Counter()
    pairs: list[Pair] = []
    for passage in sorted(passages, key=lambda text: hashlib.sha256(text.encode()).digest()):
        source = passages[passage]
        if counts[source] >= LARGEST_SHARE * count:
            continue
        pair = make_pair(re.split(r"(?<=[.!?])\s+", passage), draw)
        if pair is not None:
            pairs.append(pair)
            counts[source] += 1
        if len(pairs) == count:
            break
    return pairs


def make_pair(sentences: Sequence[str], draw: random.Random) -> Pair | None:
    """Return one of the sentences and a window of the others; None if they are too few."""
    usable = [i for i, sentence in enumerate(sentences) if 4 <= len(sentence.split()) <= 40]
    if len(sentences) < 2 or not usable:
        return None
    # Half the time the first sentence: in docstrings it says what the rest is about.
    chosen = draw.choice(usable)
    if usable[0] == 0 and draw.random() < 0.5:
        chosen = 0
    before = " ".join(sentences[:chosen]).split()
    rest = [*before, *" ".join(sentences[chosen + 1 :]).split()]
    if len(rest) < 8:
        return None
    size = int(8 * (200 / 8) ** draw.random())
    start = max(0, min(len(before) - draw.randint(0, size), len(rest) - size))
    question = sentences[chosen].split()
    if draw.random() < 0.3:
        length = draw.randint(3, 10)
        first = draw.randint(0, max(0, len(question) - length))
        question = question[first : first + length]
    return Pair(" ".join(question), " ".join(rest[start : start + size]))
