"""Dependencies point one way, heavy libraries stay at home, and importing the package is light."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import unified_embeddings

ROOT = Path(unified_embeddings.__file__).parent
PACKAGE = "unified_embeddings"

GROUND = {
    "_version",
    "errors",
    "types",
    "validation",
    "heads",
    "fusion",
    "score_scales",
    "relevance",
}
"""Modules in the package root: values, errors and arithmetic. They import no room."""
ROOMS = [
    {"system", "images", "cache", "models"},
    {"export"},
    {"engines"},
    {"embedders", "stores"},
    {"evaluation", "monitoring", "search"},
    {"llama", "retrievers", "bulk"},
    {"config", "dspy", "migration"},
    {"serving", "inspector"},
    {"cli"},
]
"""A module imports from its own room, from the ground, and from rooms in earlier rows.

Rooms in one row are independent of each other, except for NEIGHBOURS.
"""
NEIGHBOURS = {
    ("cache", "system"),
    ("images", "system"),
    ("models", "system"),
    ("retrievers", "llama"),
    ("bulk", "llama"),
    ("migration", "config"),
    ("serving", "inspector"),
}
"""(importer, imported) in one row: the one import between two rooms that goes one way."""

EXPORTERS = {"export", "engines.onnx", "cli"}
"""Rooms and modules that may import the room `export`: of the engines, the one that runs it."""

HOMES = {
    "FlagEmbedding": {"engines.flag"},
    "PIL": {"images", "embedders.clip_model", "cli.doctor"},
    "anyio": {"serving.mcp"},
    "dspy": {"dspy"},
    "fastapi": {"serving"},
    "fsspec": {"bulk.object_store"},
    "grpc": {"stores.creating", "stores.errors"},
    "httpx": {"images.fetch", "embedders.remote_transport", "cli.ping", "cli.service_stats"},
    "huggingface_hub": {"models.hub", "cli.doctor"},
    "llama_index": {
        "bulk.collection",
        "bulk.qdrant_layout",
        "llama",
        "retrievers",
        "config",
        "migration",
        "serving.searching",
        "inspector",
        "cli",
    },
    "jinja2": {"inspector.pages"},
    "matplotlib": {"cli.precision_report", "evaluation.plots"},
    "mcp": {"serving.mcp"},
    "mteb": {"evaluation.mteb"},
    "onnx": {"export.graph_writer", "engines.onnx_attention"},
    "onnxruntime": {"engines.onnx_packed", "engines.onnx_session", "engines.onnx_attention"},
    "portalocker": {"system.files"},
    "psutil": {"system.memory"},
    "pyarrow": {"bulk"},
    "py_rust_stemmers": {"embedders.stemming"},
    "pynvml": {"engines.gpu"},
    "qdrant_client": {
        "bulk.collection",
        "bulk.qdrant_layout",
        "evaluation.collections",
        "stores",
        "llama",
        "retrievers",
        "search",
        "migration",
        "serving.mcp_place",
        "serving.searching",
        "inspector",
        "cli",
    },
    "qdrant_edge": {"stores.edge", "embedders.qdrant_words"},
    "opentelemetry": {"monitoring"},
    "orjson": {"serving"},
    "prometheus_client": {"monitoring", "serving.metrics"},
    "ray": {"bulk.ray_pool", "serving.ray_serve"},
    "rich": {"system.progress", "cli"},
    "safetensors": {"models.weights"},
    "scipy": {"embedders.pooling", "evaluation"},
    "sentence_transformers": {"engines.sentence"},
    "sqlite3": {"bulk.planning", "cache", "stores.opening", "stores.errors"},
    "tokenizers": {
        "embedders.first_tokens",
        "embedders.long_runs",
        "embedders.tokenization",
        "embedders.tokenizer_file",
    },
    "runpod": {"serving.runpod"},
    "starlette": {"serving", "inspector"},
    "torch": {"engines", "models.weights", "embedders.clip_model", "cli.doctor"},
    "transformers": {"engines", "embedders.clip_model"},
    "typer": {"cli"},
    "uvicorn": {"serving", "inspector.server"},
    "zstandard": {"bulk"},
}
"""Library → the rooms and modules that may import it."""


def find_modules() -> dict[str, Path]:
    """Return each module's dotted name within the package → its file.

    Without `__init__`, which belongs to its room, and `__main__`, which only calls the command.
    """
    others = ("__init__.py", "__main__.py")
    paths = [path for path in sorted(ROOT.rglob("*.py")) if path.name not in others]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}


MODULES = find_modules()


@functools.cache  # many tests ask for each file
def find_imports(path: Path) -> frozenset[str]:
    """Return every module that a file imports by name, those for type checkers alone left out."""
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text("utf-8")))
    return frozenset(names)


def find_inner_imports(module: str) -> set[str]:
    """Return the modules of this package that a module imports."""
    imported = {name.removeprefix(f"{PACKAGE}.") for name in find_imports(MODULES[module])}
    return imported & MODULES.keys()


def room_of(module: str) -> str:
    return module.partition(".")[0]


def is_within(module: str, places: set[str]) -> bool:
    """Tell whether a module is one of these, or in one of these rooms."""
    return any(f"{module}.".startswith(f"{place}.") for place in places)


def is_allowed(importer: str, imported: str) -> bool:
    """Tell whether the directions let one module import another."""
    here, there = room_of(importer), room_of(imported)
    if imported in GROUND:
        return True
    if importer in GROUND:
        return False
    rows = {room: row for row, rooms in enumerate(ROOMS) for room in rooms}
    return here == there or (here, there) in NEIGHBOURS or rows[there] < rows[here]


def test_every_module_is_in_a_room_or_on_the_ground() -> None:
    rooms = set().union(*ROOMS)
    strays = {name for name in MODULES if room_of(name) not in rooms and name not in GROUND}
    assert not strays
    assert rooms == {room_of(name) for name in MODULES} - GROUND


@pytest.mark.parametrize("module", MODULES)
def test_dependencies_point_one_way(module: str) -> None:
    for imported in find_inner_imports(module):
        assert is_allowed(module, imported), f"{module} imports {imported}, which stands above it"


@pytest.mark.parametrize("module", [name for name in MODULES if is_within(name, {"stores.edge"})])
def test_the_embedded_client_stands_below_the_other_stores(module: str) -> None:
    others = {name for name in find_inner_imports(module) if room_of(name) == "stores"}
    for imported in others:
        assert is_within(imported, {"stores.edge", "stores.asynchronous"})


@pytest.mark.parametrize("module", MODULES)
def test_only_what_exports_imports_the_export(module: str) -> None:
    if any(room_of(imported) == "export" for imported in find_inner_imports(module)):
        assert is_within(module, EXPORTERS), f"{module} imports the room export"


def test_no_module_imports_itself_through_others() -> None:
    graph = {module: find_inner_imports(module) - {module} for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' → '.join(error.args[1])}")


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*/__init__.py")), ids=lambda p: p.parent.name)
def test_a_rooms_init_holds_its_docstring_only(path: Path) -> None:
    body = ast.parse(path.read_text("utf-8")).body
    assert len(body) == 1
    assert ast.get_docstring(ast.parse(path.read_text("utf-8")))


@pytest.mark.parametrize("library", HOMES)
def test_a_heavy_library_is_imported_only_at_home(library: str) -> None:
    for module, path in MODULES.items():
        if any(name.split(".")[0] == library for name in find_imports(path)):
            assert is_within(module, HOMES[library]), f"{module} imports {library}"


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys\nimport unified_embeddings\n"
        "heavy = {'torch', 'llama_index', 'transformers', 'qdrant_client', 'numpy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "unified_embeddings.BGE_M3_Embedder\n"
        "heavy = {'torch', 'llama_index', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_public_names_are_these() -> None:
    assert sorted(unified_embeddings.__all__) == sorted(
        name for names in unified_embeddings._HOMES.values() for name in names
    )
    for name in unified_embeddings.__all__:
        assert getattr(unified_embeddings, name).__name__ == name
    with pytest.raises(AttributeError, match="Nothing"):
        unified_embeddings.Nothing  # noqa: B018


def test_the_version_is_the_packages() -> None:
    from importlib.metadata import version

    assert unified_embeddings.__version__ == version("unified-embeddings")


def public_definitions(module: str) -> list[tuple[str, ast.AST]]:
    """Return the module itself and its public classes, functions and methods."""
    tree = ast.parse(MODULES[module].read_text("utf-8"))
    definitions: list[tuple[str, ast.AST]] = [(module, tree)]
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if node.name.startswith("_"):
            continue
        definitions.append((f"{module}.{node.name}", node))
        if isinstance(node, ast.ClassDef):
            definitions += [
                (f"{module}.{node.name}.{method.name}", method)
                for method in node.body
                if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef)
                and not method.name.startswith("_")
            ]
    return definitions


@pytest.mark.parametrize("module", MODULES)
def test_everything_public_says_what_it_does(module: str) -> None:
    for name, node in public_definitions(module):
        decorators = [ast.unparse(decorator) for decorator in getattr(node, "decorator_list", [])]
        if any("overload" in decorator for decorator in decorators):
            continue
        assert ast.get_docstring(node), f"{name} has no docstring"  # type: ignore[arg-type]
