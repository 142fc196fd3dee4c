"""RunPod's jobs: plain functions first, then the SDK's local modes, if it is installed."""

from __future__ import annotations

import importlib.util
import json
import math
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from command import environment
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.embedders.single_model import ModelEmbedder
from unified_embeddings.errors import InputError
from unified_embeddings.serving.runpod import (
    embedder_from,
    handler,
    main,
    query_handler,
    use_embedder,
)
from unified_embeddings.types import Embeddings

FAKE = FakeEmbedder(8, max_length=8)
HAS_SDK = importlib.util.find_spec("runpod") is not None
needs_sdk = pytest.mark.skipif(
    not HAS_SDK, reason="the extra runpod is not installed: pip install '.[runpod]'"
)


@pytest.fixture(autouse=True)
def _fake_model() -> Iterator[None]:
    use_embedder(FAKE)
    yield
    use_embedder(None)


def run(job: Any) -> Any:
    """What RunPod's server gets of a job."""
    return json.loads(json.dumps(handler(job), allow_nan=False))


class TestAllVectors:
    def test_a_job_gives_every_vector(self) -> None:
        texts = ["red fox", "one two three four five six seven eight"]
        result = run({"id": "1", "input": {"texts": texts, "isPassage": True, "batchSize": 8}})
        expected = FAKE.encode_documents(texts, colbert=True)
        assert expected.dense is not None
        assert expected.sparse is not None
        assert expected.colbert is not None
        for position, text in enumerate(texts):
            got = result["results"][position]
            assert got["text"] == text
            assert np.array_equal(np.array(got["dense"], np.float32), expected.dense[position])
            assert got["sparse"] == expected.sparse[position].to_qdrant()
            assert np.array_equal(np.array(got["colbert"], np.float32), expected.colbert[position])
        assert result["fingerprint"] == FAKE.fingerprint
        # Two words and eight, of which six fit beside the two special tokens.
        assert result["usage"] == {"prompt_tokens": 12, "total_tokens": 12, "truncated": 1}

    def test_only_what_is_asked_for(self) -> None:
        result = run({"input": {"texts": ["a"], "heads": ["sparse"]}})
        assert list(result["results"][0]) == ["text", "sparse"]

    @pytest.mark.parametrize("job", [None, [], "x", {}, {"id": "1"}])
    def test_a_job_without_input_is_an_error(self, job: object) -> None:
        assert handler(job) == {"error": 'the job needs "input", a JSON object'}
        assert query_handler(job) == {"error": 'the job needs "input", a JSON object'}

    def test_bad_input_is_an_error_at_the_top(self) -> None:
        error = run({"input": {"texts": ["a", 1]}})
        assert error == {"error": "texts[1] must be a string, got a number"}
        assert run({"input": None}) == {"error": "the request must be a JSON object, got null"}

    def test_nothing_is_raised_whatever_happens(self, caplog: pytest.LogCaptureFixture) -> None:
        class Failing(FakeEmbedder):
            def _encode(self, *arguments: Any, **options: Any) -> Embeddings:
                raise MemoryError(" ".join(["secret", "text"]))

        use_embedder(Failing(8))
        for function, job_input in ((handler, {"texts": ["a"]}), (query_handler, {"query": "a"})):
            error = function({"input": job_input})
            assert list(error) == ["error"]
            assert str(error["error"]).startswith("unexpected MemoryError; send fewer")
        assert "MemoryError" in caplog.text
        assert "secret text" not in caplog.text

    def test_a_result_over_runpods_limit_is_refused(self) -> None:
        use_embedder(FakeEmbedder(1024, max_length=2000))
        text = " ".join(f"word{i}" for i in range(1500))
        error = str(run({"input": {"texts": [text]}})["error"])
        assert " MB, of at most 20 MB that RunPod passes on; send fewer texts" in error
        assert '"encoding": "base64"' in error
        small = {"texts": [text], "encoding": "base64"}
        result = run({"input": small})["results"][0]
        assert math.prod(result["colbert"]["shape"]) == 1501 * 1024
        assert "error" in query_handler({"input": {"query": text, "heads": ["colbert"]}})

    def test_the_limit_counts_bytes_of_the_json_that_is_sent(self) -> None:
        # Three bytes in UTF-8, where the six of \u72d0 would be over the limit.
        texts = ["狐" * 100_000 for _ in range(33)]
        use_embedder(FakeEmbedder(2))
        sent = {"input": {"texts": texts, "heads": ["dense"]}}
        assert "results" in handler(sent)
        sent["input"]["texts"] = [*texts, *texts, *texts]
        assert "MB, of at most 20 MB" in str(handler(sent)["error"])


class TestQueries:
    def test_the_actions_of_the_query_endpoint(self) -> None:
        expected = FAKE.encode_queries(["red fox", "b"]).dense
        assert expected is not None
        single = query_handler({"input": {"query": "red fox"}})
        assert single == {"embedding": expected[0].tolist()}
        several = query_handler({"input": {"queries": ["red fox", "b"]}})
        assert several == {"embeddings": expected.tolist()}
        batch = query_handler({"input": {"action": "embed_batch", "texts": []}})
        assert batch == {"embeddings": []}

    def test_health_names_what_the_model_runs_on(self, xlmr: Path) -> None:
        use_embedder(ModelEmbedder(str(xlmr), engine="torch", device="cpu"))
        answer = query_handler({"input": {"action": "health_check"}})
        assert answer == {"status": "ok", "endpoint": "query", "runtime": "torch-cpu"}

    def test_errors(self) -> None:
        error = query_handler({"input": {"action": "embed_query"}})
        assert list(error) == ["error"]
        assert "needs query" in str(error["error"])


class TestEnvironment:
    def test_variables_choose_the_model_and_the_device(self, xlmr: Path) -> None:
        embedder = embedder_from(
            {
                "UNIFIED_EMBEDDINGS_MODEL": str(xlmr),
                "UNIFIED_EMBEDDINGS_IMAGE_MODEL": "none",
                "UNIFIED_EMBEDDINGS_MAX_LENGTH": "16",
                "QUANTIZATION": "fp32",
                "GPU_DEVICE": "cpu",
            }
        )
        assert isinstance(embedder, ModelEmbedder)
        assert embedder.max_length == 16
        assert embedder.options["precision"] == "fp32"
        assert embedder.runtime.device == "cpu"

    def test_a_gpu_is_taken_at_its_word(self, xlmr: Path) -> None:
        embedder = embedder_from({"UNIFIED_EMBEDDINGS_MODEL": str(xlmr), "GPU_DEVICE": "cuda:71"})
        assert embedder.options["device"] == "cuda:71"
        with pytest.raises(InputError, match="cuda:71"):
            _ = embedder.models[0].runtime

    def test_the_default_is_the_hardwares_choice(self, xlmr: Path) -> None:
        assert embedder_from({}).model_name == "bge-m3"
        assert embedder_from({}).options["device"] == "auto"

    def test_the_packages_own_variable_wins(self) -> None:
        variables = {"GPU_DEVICE": "cuda:0", "UNIFIED_EMBEDDINGS_DEVICE": "cpu"}
        assert embedder_from(variables).options["device"] == "cpu"

    def test_a_variable_that_is_not_usable_is_the_jobs_error(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("QUANTIZATION", "int3")
        use_embedder(None)
        assert "QUANTIZATION='int3' is not usable" in str(
            handler({"input": {"texts": []}})["error"]
        )


class TestCommand:
    @pytest.mark.parametrize("text", ["{", "[]", '{"input": 1}', '{"texts": []}'])
    def test_a_bad_test_job_is_wrong_usage(
        self, text: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as ended:
            main(["--test_input", text])
        assert ended.value.code == 2
        assert "--test_input must be a JSON object" in capsys.readouterr().err

    def test_without_the_sdk_it_says_what_to_install(self, tmp_path: Path) -> None:
        (tmp_path / "runpod.py").write_text("raise ImportError\n")
        ended = local(xlmr_or_none=None, cwd=tmp_path)
        assert ended.returncode == 1
        assert "pip install 'unified-embeddings[runpod]'" in ended.stderr
        assert "Traceback" not in ended.stderr

    def test_help_names_both_handlers(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            main(["--help"])
        assert "--query" in capsys.readouterr().out


def local(
    *arguments: str, xlmr_or_none: Path | None, cwd: Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the worker to its end, with the tiny model or a fake one that is none."""
    model = {"UNIFIED_EMBEDDINGS_MODEL": str(xlmr_or_none)} if xlmr_or_none else {}
    return subprocess.run(
        [sys.executable, "-m", "unified_embeddings.serving.runpod", *arguments],
        cwd=cwd, env=environment(**model, **variables), capture_output=True, text=True,
        timeout=180, check=False,
    )  # fmt: skip


@needs_sdk
class TestSdk:
    def test_a_test_job_and_a_clean_end(self, xlmr: Path, tmp_path: Path) -> None:
        job = json.dumps({"input": {"texts": ["red fox"], "heads": ["dense", "sparse"]}})
        ended = local("--test_input", job, xlmr_or_none=xlmr, cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
        assert "completed successfully" in ended.stdout
        assert "'indices': [" in ended.stdout
        assert ended.stderr == ""

    def test_a_failed_job_is_told_without_a_traceback(self, xlmr: Path, tmp_path: Path) -> None:
        job = json.dumps({"input": {"action": "embed_query"}})
        ended = local("--query", "--test_input", job, xlmr_or_none=xlmr, cwd=tmp_path)
        assert ended.returncode == 1
        assert "needs query (a string) or queries" in ended.stdout
        assert "Traceback" not in ended.stdout + ended.stderr

    def test_a_model_that_cannot_be_loaded_ends_the_worker(self, tmp_path: Path) -> None:
        job = json.dumps({"input": {"texts": ["red fox"]}})
        ended = local("--test_input", job, xlmr_or_none=tmp_path / "none", cwd=tmp_path)
        assert ended.returncode == 1
        assert ended.stderr.startswith("error: Cannot load model")
        assert "Traceback" not in ended.stderr

    def test_the_local_api(self, xlmr: Path, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        process = subprocess.Popen(
            [
                sys.executable, "-m", "unified_embeddings.serving.runpod",
                "--rp_serve_api", "--rp_api_port", str(port), "--rp_api_host", "127.0.0.1",
            ],
            cwd=tmp_path, env=environment(UNIFIED_EMBEDDINGS_MODEL=str(xlmr)),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        try:
            done = runsync(port, {"texts": ["Red fox"], "heads": ["dense"]}, process)
            assert done["status"] == "COMPLETED"
            expected = ModelEmbedder(str(xlmr), device="cpu").encode_query("Red fox").dense
            assert expected is not None
            got = np.array(done["output"]["results"][0]["dense"], np.float32)
            np.testing.assert_allclose(got, expected[0], atol=1e-6)
            failed = runsync(port, {"texts": "red fox"}, process)
            assert failed["status"] == "FAILED"
            assert failed["error"].startswith("texts must be a list of strings, got a string")
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate(timeout=60)
            assert process.returncode == 0, output
            assert "Traceback" not in output
            assert "Red fox" not in output
        finally:
            process.kill()


def runsync(port: int, job_input: object, process: subprocess.Popen[str]) -> Any:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/runsync",
        json.dumps({"input": job_input}).encode(),
        {"content-type": "application/json"},
    )
    end = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.loads(response.read())
        except OSError:
            assert process.poll() is None, process.stdout and process.stdout.read()
            assert time.monotonic() < end
            time.sleep(0.1)
