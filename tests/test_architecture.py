"""Dependencies point one way, heavy libraries stay at home, and importing the package is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import unified_embeddings

ROOT = Path(unified_embeddings.__file__).parent
PACKAGE = "unified_embeddings"

LAYERS = [
    {"types", "errors"},
    {
        "system.hardware",
        "system.progress",
        "heads",
        "cache.embedding_cache",
        "models.spec",
        "fusion",
    }
    | {"images.fetch", "images.sources", "system.memory"},
    {"models.mini_m3"},
    {"models.checkpoint"},
    {"embedders.tokenization", "engines.base", "engines.torch", "engines.flag", "engines.sentence"}
    | {
        "engines.onnx",
        "models.weights",
        "engines.encoder",
        "engines.quiet",
        "export.graph",
        "export.folder",
    },
    {"embedders.bge_m3", "embedders.paired", "embedders.clip"},
    {"evaluation.agreement", "evaluation.measurement", "evaluation.corpora"},
    {"stores.edge.catalog", "stores.asynchronous"},
    {"stores.edge.vectors", "stores.edge.shard"},
    {"stores.edge.translation"},
    {"stores.edge.points", "stores.edge.queries"},
    {"stores.edge.client"},
    {"stores.opening"},
    {"stores.schema", "stores.copying"},
    {"llama.text", "llama.vector_store", "llama.indexing"}
    | {"llama.huggingface", "llama.multimodal_index", "retrievers.hybrid", "retrievers.multimodal"},
    {"config.pipeline"},
    {"cli.app", "cli.shared", "cli.demo", "cli.index", "cli.search", "cli.doctor"}
    | {"cli.models", "cli.copying", "cli.optimize"}
    | {"cli.export_onnx", "cli.quantize", "cli.precision_report"},
]
"""A module imports from its own layer and those above it in this list, never from below."""

HOMES = {
    "torch": {
        "engines.torch",
        "engines.flag",
        "engines.sentence",
        "models.weights",
        "engines.encoder",
        "embedders.clip",
        "cli.doctor",
    },
    "onnx": {"export.graph"},
    "onnxruntime": {"engines.onnx"},
    "transformers": {"engines.flag", "engines.sentence", "engines.quiet", "embedders.clip"},
    "sentence_transformers": {"engines.sentence"},
    "PIL": {"images.sources", "embedders.clip", "cli.doctor"},
    "httpx": {"images.fetch"},
    "psutil": {"system.memory"},
    "matplotlib": {"cli.precision_report"},
    "safetensors": {"models.weights"},
    "FlagEmbedding": {"engines.flag"},
    "tokenizers": {"embedders.tokenization"},
    "huggingface_hub": {"models.checkpoint", "cli.doctor"},
    "cachetools": {"cache.embedding_cache"},
    "sqlite3": {"cache.embedding_cache", "stores.*"},
    "llama_index": {
        "llama.*",
        "retrievers.hybrid",
        "retrievers.multimodal",
        "config.pipeline",
        "cli.demo",
        "cli.search",
        "cli.shared",
    },
    "qdrant_client": {"stores.*", "llama.*", "retrievers.hybrid", "cli.demo", "cli.shared"}
    | {"cli.copying"},
    "qdrant_edge": {"stores.*"},
    "portalocker": {"stores.edge.catalog"},
    "grpc": {"stores.schema"},
    "typer": {"cli.app", "cli.*"},
    "rich": {"system.progress", "cli.*"},
}


def modules() -> dict[str, Path]:
    """Module name within the package → file; the package's own __init__ is ""."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        if path.name == "__init__.py" and len(ast.parse(path.read_text("utf-8")).body) == 1:
            continue  # a room's docstring
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imports(path: Path, *, at_top_only: bool = False) -> set[str]:
    """Every module a file imports by name, those for type checkers alone left out."""
    tree = ast.parse(path.read_text("utf-8"))
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if at_top_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return names


def layer_of(module: str) -> int:
    for depth, layer in enumerate(LAYERS):
        if module in layer:
            return depth
    pytest.fail(f"module {module!r} stands in no layer; give it one")


def test_every_module_stands_in_a_layer() -> None:
    assert {name for name in modules() if name} == set().union(*LAYERS)


@pytest.mark.parametrize("module", [name for name in modules() if name])
def test_dependencies_point_one_way(module: str) -> None:
    depth = layer_of(module)
    for imported in imports(modules()[module]):
        inner = imported.removeprefix(f"{PACKAGE}.")
        if inner != imported and inner in modules():
            assert layer_of(inner) <= depth, f"{module} imports {inner}, which stands above it"


@pytest.mark.parametrize("library", sorted(HOMES))
def test_a_heavy_library_is_imported_only_at_home(library: str) -> None:
    homes = HOMES[library]
    for module, path in modules().items():
        if any(name.split(".")[0] == library for name in imports(path)):
            family = f"{module.split('.')[0]}.*"
            assert module in homes or family in homes, f"{module} imports {library}"


def test_the_embedder_and_below_need_no_llama_index() -> None:
    below = set().union(*LAYERS[:7])
    for module in below:
        assert not any(name.startswith("llama_index") for name in imports(modules()[module]))


def test_importing_the_package_is_light_and_quick() -> None:
    code = (
        "import sys, time\nstarted = time.perf_counter()\nimport unified_embeddings\n"
        "seconds = time.perf_counter() - started\n"
        "heavy = {'torch', 'llama_index', 'transformers', 'qdrant_client'} & set(sys.modules)\n"
        "assert not heavy, heavy\nassert seconds < 0.5, seconds\n"
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


@pytest.mark.parametrize("module", [name for name in modules() if name and "cli.app" not in name])
def test_every_public_function_says_what_it_does(module: str) -> None:
    tree = ast.parse(modules()[module].read_text("utf-8"))
    assert ast.get_docstring(tree), f"{module} has no docstring"
