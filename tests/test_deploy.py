"""What `deploy/` and the workflows name exists, and runs with few rights."""

from __future__ import annotations

import http.server
import importlib.util
import json
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from unified_embeddings._version import __version__

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
DOCKERFILES = sorted(DEPLOY.glob("*.Dockerfile"))
YAML_FILES = sorted([*DEPLOY.rglob("*.yaml"), *(ROOT / ".github" / "workflows").glob("*.yml")])
VERSION_TAG = re.compile(r"v?\d+\.\d+\.\d+[-\w.]*")
pytestmark = pytest.mark.skipif(not DEPLOY.is_dir(), reason="not a checkout")


class Stage:
    """One stage of a Dockerfile, with the instructions of the stages of the file it starts from."""

    def __init__(self, base: str, instructions: list[tuple[str, str]]) -> None:
        self.base = base
        self.instructions = instructions

    def values(self, keyword: str) -> list[str]:
        return [value for name, value in self.instructions if name == keyword]


def read_stages(file: Path) -> tuple[dict[str, Stage], dict[str, str]]:
    """Return a Dockerfile's stages by name, and its arguments."""
    text = re.sub(r"^#.*\n", "", file.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    stages: dict[str, Stage] = {}
    arguments: dict[str, str] = {}
    current: Stage | None = None
    for line in filter(None, map(str.strip, text.splitlines())):
        keyword, value = line.split(maxsplit=1)
        if keyword == "ARG" and "=" in value:
            name, default = value.split("=", 1)
            arguments[name] = default
        if keyword == "FROM":
            match = re.fullmatch(r"(\S+) AS (\S+)", value)
            assert match, f"{file.name}: {line} names no stage"
            base, name = match.groups()
            earlier = stages.get(base)
            inherited = list(earlier.instructions) if earlier else []
            current = stages[name] = Stage(earlier.base if earlier else base, inherited)
        elif current is not None:
            current.instructions.append((keyword, value))
    return stages, arguments


def load(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def known_variables() -> set[str]:
    from unified_embeddings.config import environment
    from unified_embeddings.serving import settings

    names = {name.upper() for name in settings._TYPES} | set(environment._VARIABLES)
    return {f"UNIFIED_EMBEDDINGS_{name}" for name in names} | {"QUANTIZATION", "GPU_DEVICE"}


# --- Dockerfiles --------------------------------------------------------------------------------


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_what_a_dockerfile_copies_is_here_and_reaches_the_builder(file: Path) -> None:
    allowed = [
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    ]
    stages, _ = read_stages(file)
    for stage in stages.values():
        for value in stage.values("COPY"):
            *sources, _target = value.replace("--chown=10001:10001 ", "").split()
            if sources[0].startswith("--from="):
                assert sources[0].removeprefix("--from=") in stages
                continue
            for source in sources:
                assert source.split("/")[0] in allowed, f"{source} is in .dockerignore"
                if source.startswith("requirements/") and not has_query_endpoint():
                    continue
                assert (ROOT / source).exists(), source


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_an_image_is_pinned_and_not_roots(file: Path) -> None:
    stages, arguments = read_stages(file)
    for name, stage in stages.items():
        image, _, tag = stage.base.replace("${PYTHON}", arguments["PYTHON"]).partition(":")
        assert image == "python"
        assert VERSION_TAG.fullmatch(tag), f"{name} is from {stage.base}"
    for name in {list(stages)[-1], *(["gpu"] if "gpu" in stages else [])}:
        final = stages[name]
        assert final.values("USER") == ["10001:10001"]
        assert final.values("EXPOSE") == ["8000"]
        assert len(final.values("HEALTHCHECK")) == 1
        assert final.values("ENTRYPOINT") == ['["unified-embeddings"]']


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_an_images_command_takes_what_it_is_given(file: Path) -> None:
    stages, _ = read_stages(file)
    command = json.loads(list(stages.values())[-1].values("CMD")[-1])
    if command[0] == "serve-query" and not has_query_endpoint():
        pytest.skip("the light endpoint is not here")
    helped = subprocess.run(
        [sys.executable, "-m", "unified_embeddings", command[0], "--help"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert helped.returncode == 0, helped.stderr
    for argument in command[1:]:
        if argument.startswith("--"):
            assert argument in helped.stdout


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
@pytest.mark.parametrize(("status", "is_healthy"), [(200, True), (503, False), (None, False)])
def test_a_health_check_asks_the_service(file: Path, status: int | None, is_healthy: bool) -> None:
    stages, _ = read_stages(file)
    check = list(stages.values())[-1].values("HEALTHCHECK")[0]
    python, *arguments = json.loads(check[check.index("CMD ") + 4 :])
    assert python == "python"
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status or 500)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        port = server.server_port
        if status is not None:
            threading.Thread(target=server.serve_forever, daemon=True).start()
        else:
            server.server_close()
        ended = subprocess.run(
            [sys.executable, *arguments],
            env={"UNIFIED_EMBEDDINGS_PORT": str(port)},
            capture_output=True,
            check=False,
        )
        if status is not None:
            server.shutdown()
    assert (ended.returncode == 0) is is_healthy
    assert asked == (["/health"] if status is not None else [])


def has_query_endpoint() -> bool:
    return importlib.util.find_spec("unified_embeddings.cli.serve_query") is not None


# --- compose, Kubernetes, workflows -------------------------------------------------------------


@pytest.mark.parametrize("file", YAML_FILES, ids=lambda file: file.name)
def test_yaml_parses_and_names_variables_that_exist(file: Path) -> None:
    text = file.read_text()
    assert list(yaml.safe_load_all(text))
    for name in re.findall(r"UNIFIED_EMBEDDINGS_[A-Z_]+", text):
        assert name in known_variables(), name


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_dockerfiles_name_variables_that_exist(file: Path) -> None:
    for name in re.findall(r"UNIFIED_EMBEDDINGS_[A-Z_]+", file.read_text()):
        assert name in known_variables(), name


def test_compose_runs_both_with_few_rights_and_limits() -> None:
    services = load("compose.yaml")["services"]
    assert services["embeddings"]["ports"] == ["127.0.0.1:8000:8000"]
    assert "QUANTIZATION" in services["embeddings"]["environment"]
    assert (DEPLOY / ".." / services["embeddings"]["build"]["dockerfile"]).is_file()
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["mem_limit"]
        tag = service["image"].partition(":")[2]
        assert VERSION_TAG.fullmatch(tag)
    assert services["embeddings"]["image"].endswith(f":{__version__}")
    assert services["qdrant"]["healthcheck"]["test"]
    condition = services["embeddings"]["depends_on"]["qdrant"]["condition"]
    assert condition == "service_healthy"
    targets = read_stages(DEPLOY / "service.Dockerfile")[0]
    assert load("compose.gpu.yaml")["services"]["embeddings"]["build"]["target"] in targets


def test_kubernetes_probes_ask_routes_that_exist() -> None:
    pytest.importorskip("fastapi")
    from unified_embeddings import UnifiedEmbeddingConfig
    from unified_embeddings.serving.app import make_app

    documents = yaml.safe_load_all((DEPLOY / "kubernetes" / "service.yaml").read_text())
    by_kind = {document["kind"]: document for document in documents}
    pod = by_kind["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    paths = make_app(UnifiedEmbeddingConfig("mini-m3")).openapi()["paths"]
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container[name]["httpGet"]
        assert "get" in paths[asked["path"]]
        assert ports[asked["port"]] == 8000
    assert by_kind["Service"]["spec"]["ports"][0]["targetPort"] in ports
    labels = by_kind["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert by_kind["Service"]["spec"]["selector"].items() <= labels.items()
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["resources"]["limits"].keys() == {"cpu", "memory"}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    assert set(mounts.values()) == {"/cache", "/tmp"}


def test_the_workflows_build_what_is_here() -> None:
    text = (ROOT / ".github" / "workflows" / "docker.yml").read_text()
    workflow = yaml.safe_load(text)
    for image in workflow["jobs"]["image"]["strategy"]["matrix"]["include"]:
        assert image["target"] in read_stages(ROOT / image["file"])[0]
    assert set(re.findall(r"secrets\.(\w+)", text)) == {"DOCKERHUB_USERNAME", "DOCKERHUB_TOKEN"}
    checks = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = checks["jobs"]["check"]["steps"]
    assert "make check" in [step.get("run") for step in steps]
    assert re.search(r"^check:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for step in [*steps, *workflow["jobs"]["image"]["steps"]]:
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step["uses"])
