"""The service on Ray Serve; and what is said where Ray is not installed."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import command

httpx = pytest.importorskip("httpx")
HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="needs Ray: pip install '.[ray]'")
PATIENCE = 240.0


def start(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    with (folder / "log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "unified_embeddings", "serve", "--model", "mini-m3", *arguments],
            cwd=folder,
            env=command.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
        )


@needs_ray
@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_the_same_application_answers_on_ray(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    key_file = tmp_path / "keys"
    key_file.write_text("secret\n")
    arguments = ["--engine", "ray", "--port", str(port), "--api-key-file", str(key_file)]
    process = start(tmp_path, *arguments)
    try:
        deadline = time.monotonic() + PATIENCE
        while f"ready at {url}" not in (tmp_path / "log").read_text():
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.2)
        assert httpx.get(f"{url}/ready").json() == {"status": "ok"}
        refused = httpx.post(f"{url}/embed", json={"text": "foxes"})
        assert refused.status_code == 401  # The settings reached the replica.
        key = {"Authorization": "Bearer secret"}
        answer = httpx.post(f"{url}/v1/m3", json={"texts": ["foxes"]}, headers=key)
        assert len(answer.json()["results"][0]["dense"]) == 384
        assert answer.headers["x-model-fingerprint"] == answer.json()["fingerprint"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()


@needs_ray
def test_replicas_share_the_cores_and_are_bounded() -> None:
    from unified_embeddings.serving.ray_serve import make_application
    from unified_embeddings.serving.settings import ServiceSettings
    from unified_embeddings.system.hardware import cpu

    application = make_application({"device": "cuda:0"}, ServiceSettings(workers=4))
    deployment = application._bound_deployment
    scaling = deployment._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 4)
    options = deployment._replica_config.ray_actor_options
    assert options["num_cpus"] == max(1, cpu().cores // 4)
    assert options["num_gpus"] == 1


@needs_ray
def test_a_port_has_to_be_named(tmp_path: Path) -> None:
    assert start(tmp_path, "--runner", "ray", "--port", "0").wait(PATIENCE) != 0
    assert "name one with --port" in (tmp_path / "log").read_text()


@pytest.mark.skipif(HAS_RAY, reason="Ray is installed")
def test_without_ray_the_extra_is_named(tmp_path: Path) -> None:
    assert start(tmp_path, "--runner", "ray").wait(PATIENCE) != 0
    log = (tmp_path / "log").read_text()
    assert "ray" in log
    assert "pip install" in log
    assert "Traceback" not in log


def test_an_unknown_runner_is_refused(tmp_path: Path) -> None:
    assert start(tmp_path, "--runner", "docker").wait(PATIENCE) != 0
    assert "runner must be processes or ray, got 'docker'" in (tmp_path / "log").read_text()
