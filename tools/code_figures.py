"""Print figures on how the code reads: lengths, density, names and comments.

    python tools/code_figures.py [FOLDER ...]      # default: src/unified_embeddings

The figures show a direction, not a score. A line of code is a line that holds a token other than a
comment or a docstring; figures "per 1,000 lines" count every line of a file. `Any` is counted
outside stores/edge, whose core is untyped.
"""

from __future__ import annotations

import argparse
import ast
import io
import statistics
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

UNTYPED = "stores/edge"
SOURCE = Path(__file__).resolve().parents[1] / "src/unified_embeddings"
LONG_MODULE = 400
LONG_FUNCTION = 40
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
NO_CODE = frozenset(
    (
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENCODING,
        tokenize.ENDMARKER,
    )
)


@dataclass
class Figures:
    """What is counted over all modules."""

    lines: int = 0
    code_lines: int = 0
    tokens: int = 0
    comments: int = 0
    comprehensions: int = 0
    conditional_expressions: int = 0
    typed_lines: int = 0
    any_annotations: int = 0
    names: list[str] = field(default_factory=list)
    function_lengths: list[int] = field(default_factory=list)
    long_functions: list[str] = field(default_factory=list)
    long_modules: list[str] = field(default_factory=list)


def main() -> None:
    """Read the folders named on the command line and print their figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folders", nargs="*", type=Path, default=[SOURCE])
    folders = parser.parse_args().folders
    figures = Figures()
    modules = sorted(path for folder in folders for path in folder.rglob("*.py"))
    for path in modules:
        count_module(path, figures)
    print_figures(figures, len(modules))


def count_module(path: Path, figures: Figures) -> None:
    """Add one module's figures to the totals."""
    source = path.read_text("utf-8")
    tree = ast.parse(source)
    docstring_lines = set(find_docstring_lines(tree))
    code_lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            figures.comments += 1
        if token.type in NO_CODE or token.start[0] in docstring_lines:
            continue
        figures.tokens += 1
        code_lines.update(range(token.start[0], token.end[0] + 1))
    figures.code_lines += len(code_lines)
    total_lines = source.count("\n")
    figures.lines += total_lines
    is_typed = UNTYPED not in path.as_posix()
    figures.typed_lines += total_lines if is_typed else 0
    if total_lines > LONG_MODULE:
        figures.long_modules.append(f"{path} ({total_lines})")
    for node in ast.walk(tree):
        count_node(node, path, code_lines, figures)
        if is_typed and isinstance(node, ast.Name) and node.id == "Any":
            figures.any_annotations += 1


def count_node(node: ast.AST, path: Path, code_lines: set[int], figures: Figures) -> None:
    """Add one node of a module's syntax tree to the totals."""
    if isinstance(node, COMPREHENSIONS):
        figures.comprehensions += 1
    elif isinstance(node, ast.IfExp):
        figures.conditional_expressions += 1
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        figures.names.append(node.id)
    elif isinstance(node, ast.arg):
        figures.names.append(node.arg)
    elif isinstance(node, FUNCTIONS):
        first = node.lineno
        if "typer." in ast.unparse(node.args):
            first = node.body[0].lineno  # a command's signature is its help text
        last = node.end_lineno or node.lineno
        length = len(code_lines.intersection(range(first, last + 1)))
        figures.function_lengths.append(length)
        if length > LONG_FUNCTION:
            figures.long_functions.append(f"{path}:{node.lineno} {node.name} ({length})")


def find_docstring_lines(tree: ast.Module) -> Iterator[int]:
    """Yield the lines of strings that stand as statements: docstrings, also of constants."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Constant):
            continue
        if isinstance(node.value.value, str):
            yield from range(node.lineno, (node.end_lineno or node.lineno) + 1)


def has_several_words(name: str) -> bool:
    """Tell whether a name is made of more than one word."""
    return "_" in name.strip("_")


def print_figures(figures: Figures, modules: int) -> None:
    """Print the totals, then the modules and functions over the limits."""
    thousands = figures.lines / 1000
    lengths = sorted(figures.function_lengths)
    several_words = sum(map(has_several_words, figures.names)) / len(figures.names)
    rows = [
        ("modules", f"{modules:,}"),
        (f"modules over {LONG_MODULE} lines", f"{len(figures.long_modules)}"),
        ("lines", f"{figures.lines:,}"),
        ("lines of code", f"{figures.code_lines:,}"),
        ("functions", f"{len(lengths):,}"),
        ("function length, median", f"{statistics.median(lengths):.0f} lines of code"),
        ("function length, 90th percentile", f"{lengths[len(lengths) * 9 // 10]} lines of code"),
        (f"functions over {LONG_FUNCTION} lines of code", f"{len(figures.long_functions)}"),
        ("tokens per line of code", f"{figures.tokens / figures.code_lines:.2f}"),
        ("comprehensions per 1,000 lines", f"{figures.comprehensions / thousands:.1f}"),
        (
            "conditional expressions per 1,000 lines",
            f"{figures.conditional_expressions / thousands:.1f}",
        ),
        ("variable names of more than one word", f"{several_words:.1%}"),
        ("comments per 1,000 lines", f"{figures.comments / thousands:.1f}"),
        (
            f"Any per 1,000 lines outside {UNTYPED}",
            f"{figures.any_annotations / figures.typed_lines * 1000:.1f}",
        ),
    ]
    for name, value in rows:
        print(f"{name:42} {value}")
    for place in (*figures.long_modules, *figures.long_functions):
        print(f"over the limit: {place}")


if __name__ == "__main__":
    main()
