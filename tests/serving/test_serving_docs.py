"""Every command and snippet of docs/serving.md does what the page says."""

from __future__ import annotations

import dataclasses
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import pytest
import typer.main

from image_files import noise
from running_service import RunningService
from unified_embeddings.cli.app import app
from unified_embeddings.serving.app import make_app
from unified_embeddings.serving.settings import ServiceSettings, load_settings

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text("utf-8")
README = (ROOT / "README.md").read_text("utf-8")
SHELL = [
    line
    for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    for line in block.replace("\\\n", " ").splitlines()
]
CURLS = [line for line in SHELL if line.startswith("curl ")]
SNIPPETS = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
README_CURLS = re.findall(r"^curl .*localhost:8000.*$", README, re.MULTILINE)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("line", [*CURLS, *README_CURLS])
def test_each_curl_gets_the_status_that_is_documented(
    line: str, full_service: RunningService, guarded_service: RunningService, tmp_path: Path
) -> None:
    noise(64, 48, 1).save(tmp_path / "fox.png")
    command, _, comment = line.partition("  #")
    expected = re.match(r" ?(\d{3})\b", comment)
    command = command.replace("localhost:8000", full_service.url)
    command = command.replace("localhost:8001", guarded_service.url)
    command = command.replace("curl ", "curl -sS -o answer.json -w '%{http_code}' ", 1)
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    answer = (tmp_path / "answer.json").read_text("utf-8")
    assert done.stdout == (expected.group(1) if expected else "200"), answer
    assert answer


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_each_snippet_prints_what_its_comments_say(
    snippet: str,
    full_service: RunningService,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # the client's, not the service's
    module = re.search(r"^from (\S+) import", snippet, re.MULTILINE)
    assert module is not None
    pytest.importorskip(module.group(1))
    expected = re.findall(r"^print\(.*\) {2,}# (.*)$", snippet, re.MULTILINE)
    code = snippet.replace("http://localhost:8000", full_service.url)
    exec(compile(code, "docs/serving.md", "exec"), {"__name__": "example"})
    printed = capsys.readouterr().out.splitlines()
    assert printed == expected
    assert printed


def test_the_page_shows_every_contract() -> None:
    from unified_embeddings import UnifiedEmbeddingConfig

    paths = make_app(UnifiedEmbeddingConfig("mini-m3")).openapi()["paths"]
    table = PAGE.split("## Contracts")[1].split("###")[0]
    for path in paths:
        shown = path.replace("{name}", "NAME")
        assert f"`{shown}`" in table or f" {shown}`" in table, path
    shown_paths = set(re.findall(r"localhost:800\d(/[\w/-]*)", "\n".join(CURLS)))
    alternatives = {"/", "/v2/rerank", "/api/version", "/v1/models/{name}"}
    assert set(paths) - shown_paths <= alternatives


def commands() -> dict[str, click.Command]:
    group = typer.main.get_command(app)
    return group.commands  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("line", [line for line in SHELL if line.startswith("unified-embeddings ")])
def test_the_commands_and_their_flags_exist(line: str) -> None:
    _, name, *arguments = shlex.split(line)
    known = {flag for parameter in commands()[name].params for flag in parameter.opts}
    assert {argument for argument in arguments if argument.startswith("-")} <= known


def settings_table() -> list[list[str]]:
    table = PAGE.split("## Settings")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("| `")]
    return [[cell.strip().strip("`") for cell in row] for row in rows]


def test_the_table_of_settings_is_complete_and_right() -> None:
    fields = {field.name: field.default for field in dataclasses.fields(ServiceSettings)}
    rows = {row[0]: row for row in settings_table()}
    assert set(rows) == {*fields, "api_key_file"}
    flags = {flag for parameter in commands()["serve"].params for flag in parameter.opts}
    for name, row in rows.items():
        _, flag, variable, default, _ = row
        assert variable == name.upper()
        assert not flag or flag in flags
        shown = default.replace(",", "")
        value = fields.get(name)
        if value in (None, ()):
            assert shown in ("none", "1024 on a CPU")
        elif isinstance(value, bool):
            assert shown == str(value).lower()
        elif isinstance(value, (int, float)):
            assert float(shown) == value
        else:
            assert shown == value


def test_a_flag_is_named_for_each_setting_that_has_one() -> None:
    named = {row[1] for row in settings_table() if row[1]}
    names = {f"--{row[0].replace('_', '-')}" for row in settings_table()} | {
        "--served-name",
        "--path",
        "--url",
    }
    flags = {flag for parameter in commands()["serve"].params for flag in parameter.opts}
    assert names & flags == named


def test_the_settings_file_reads(tmp_path: Path) -> None:
    (block,) = re.findall(r"^```toml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    file = tmp_path / "service.toml"
    file.write_text(block)
    settings, options = load_settings(file, {}, {}, {})
    assert settings == ServiceSettings(
        port=9000, served_names=("text-embedding-3-small",), max_waiting_tokens=65536
    )
    assert options == {"model_choice": "bge-m3", "precision": "int8"}
