"""What a service is started with: a file, variables and flags, and which of them wins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig
from unified_embeddings.errors import InputError
from unified_embeddings.serving.api_keys import read_keys
from unified_embeddings.serving.settings import ServiceSettings, load_settings


def load(
    text: str | None = None,
    *,
    environ: dict[str, str] | None = None,
    flags: dict[str, Any] | None = None,
    model_flags: dict[str, Any] | None = None,
    folder: Path | None = None,
) -> tuple[ServiceSettings, dict[str, Any]]:
    file = None
    if text is not None:
        assert folder is not None
        file = folder / "service.toml"
        file.write_text(text)
    return load_settings(file, environ or {}, flags or {}, model_flags or {})


def test_nothing_given_is_the_defaults() -> None:
    settings, options = load()
    assert settings == ServiceSettings()
    assert settings.host == "127.0.0.1"
    assert options == {}


def test_flags_win_over_variables_and_these_over_the_file(tmp_path: Path) -> None:
    text = 'port = 1\nhost = "10.0.0.1"\nmax_texts = 5\n[model]\nengine = "onnx"\ndevice = "cpu"\n'
    environ = {
        "UNIFIED_EMBEDDINGS_PORT": "2",
        "UNIFIED_EMBEDDINGS_HOST": "10.0.0.2",
        "UNIFIED_EMBEDDINGS_ENGINE": "torch",
    }
    settings, options = load(
        text,
        environ=environ,
        flags={"port": 3, "host": None},
        model_flags={"model_choice": "mini-m3", "engine": None},
        folder=tmp_path,
    )
    assert (settings.port, settings.host, settings.max_texts) == (3, "10.0.0.2", 5)
    assert options == {"model_choice": "mini-m3", "engine": "torch", "device": "cpu"}


def test_each_type_reads_from_a_file_and_from_a_variable(tmp_path: Path) -> None:
    text = """
        served_names = ["a", "b"]
        auto_truncate = false
        request_timeout = 5
        drain_timeout = 1.5
        batch_tokens = 300
        store_path = "store"
        collection = "notes"
        model = "mini-m3"
    """
    from_file, options = load(text, folder=tmp_path)
    assert options == {"model_choice": "mini-m3", "batch_tokens": 300}
    environ = {
        "UNIFIED_EMBEDDINGS_SERVED_NAMES": "a, b,",
        "UNIFIED_EMBEDDINGS_AUTO_TRUNCATE": "No",
        "UNIFIED_EMBEDDINGS_REQUEST_TIMEOUT": "5",
        "UNIFIED_EMBEDDINGS_DRAIN_TIMEOUT": "1.5",
        "UNIFIED_EMBEDDINGS_BATCH_TOKENS": "300",
        "UNIFIED_EMBEDDINGS_STORE_PATH": "store",
        "UNIFIED_EMBEDDINGS_COLLECTION": "notes",
        "UNIFIED_EMBEDDINGS_MODEL": "mini-m3",
        "UNIFIED_EMBEDDINGS_PORT": " ",  # blank counts as not set
    }
    from_environment, options = load(environ=environ)
    assert options == {"model_choice": "mini-m3", "batch_tokens": 300}
    assert from_file == from_environment
    assert from_file.served_names == ("a", "b")
    assert isinstance(from_file.request_timeout, float)


def test_an_unknown_option_of_the_model_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\[model\] model_choce: unknown option.*model_choice"):
        load('[model]\nmodel_choce = "mini-m3"\n', folder=tmp_path)


def test_the_names_of_document_002_are_taken() -> None:
    environ = {"QUANTIZATION": "INT8", "GPU_DEVICE": "cuda:1"}
    _, options = load(environ=environ)
    assert options == {"precision": "int8", "device": "cuda:1"}
    ours = {"UNIFIED_EMBEDDINGS_PRECISION": "fp32", "UNIFIED_EMBEDDINGS_DEVICE": "cpu"}
    _, options = load(environ=environ | ours)
    assert options == {"precision": "fp32", "device": "cpu"}
    _, options = load(environ=environ, model_flags={"precision": "bf16", "device": "cuda:0"})
    assert options == {"precision": "bf16", "device": "cuda:0"}


def test_variables_of_document_002_win_over_the_file(tmp_path: Path) -> None:
    environ = {"QUANTIZATION": "int8", "GPU_DEVICE": "cuda:1"}
    text = '[model]\nprecision = "fp32"\ndevice = "cpu"\n'
    _, options = load(text, environ=environ, folder=tmp_path)
    assert options == {"precision": "int8", "device": "cuda:1"}


@pytest.mark.parametrize(
    ("text", "environ", "flags", "service", "model"),
    [
        (None, {}, {}, None, None),
        (None, {"UNIFIED_EMBEDDINGS_BATCH_TOKENS": "300"}, {}, 300, 300),
        (None, {"UNIFIED_EMBEDDINGS_BATCH_TOKENS": "300"}, {"batch_tokens": 400}, 400, 400),
        ("batch_tokens = 200", {}, {}, 200, 200),
        ("batch_tokens = 200", {}, {"batch_tokens": 400}, 400, 400),
        ("[model]\nbatch_tokens = 100", {}, {}, None, 100),
        ("batch_tokens = 200\n[model]\nbatch_tokens = 100", {}, {}, 200, 100),
        ("[model]\nbatch_tokens = 100", {}, {"batch_tokens": 400}, 400, 100),
    ],
)
def test_batch_tokens_is_the_services_and_the_models_unless_the_model_has_its_own(
    tmp_path: Path,
    text: str | None,
    environ: dict[str, str],
    flags: dict[str, Any],
    service: int | None,
    model: int | None,
) -> None:
    settings, options = load(text, environ=environ, flags=flags, folder=tmp_path)
    assert settings.batch_tokens == service
    assert options.get("batch_tokens") == model


def test_the_options_make_a_config(tmp_path: Path) -> None:
    text = '[model]\nmodel_choice = "mini-m3"\nprecision = "fp32"\ndevice = "cpu"\n'
    _, options = load(text, folder=tmp_path)
    assert UnifiedEmbeddingConfig(**options).model_choice == "mini-m3"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prot = 1", "prot: unknown setting; the settings are .*port"),
        ('port = "1"', r"port: expected int, got '1'"),
        ("port = 1.0", r"port: expected int, got 1\.0"),
        ("port = true", "port: expected int, got True"),
        ("port = -1", "port must be"),
        ("port = 70000", "port must be <= 65535, got 70000"),
        ("host = 1", "host: expected str, got 1"),
        ("auto_truncate = 1", "auto_truncate: expected bool, got 1"),
        ("request_timeout = true", "request_timeout: expected float, got True"),
        ("request_timeout = 0", "request_timeout must be seconds > 0"),
        ("request_timeout = inf", "request_timeout must be seconds > 0"),
        ("request_timeout = nan", "request_timeout must be seconds > 0"),
        ("max_texts = 0", "max_texts"),
        ("served_names = 'a'", "served_names: expected a list of texts, got 'a'"),
        ("served_names = [1]", "served_names: expected a list of texts"),
        ("model = 1", "model must be a name or a table"),
        ("collection = 'a'", "needs --path or --url"),
        ("port = ", "cannot be read"),
        ("api_keys = ['']", "an API key must be printable ASCII and not blank"),
    ],
)
def test_what_the_file_has_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load(text, folder=tmp_path)


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "service.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=r"service\.toml cannot be read"):
        load_settings(file, {}, {}, {})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "many"),
        ("PORT", "1.5"),
        ("AUTO_TRUNCATE", "perhaps"),
        ("REQUEST_TIMEOUT", "soon"),
        ("BATCH_TOKENS", "x"),
    ],
)
def test_a_variable_that_does_not_read_is_named(name: str, value: str) -> None:
    with pytest.raises(InputError, match=f"UNIFIED_EMBEDDINGS_{name}='{value}' is not usable"):
        load(environ={f"UNIFIED_EMBEDDINGS_{name}": value})


def test_a_quantization_that_is_none_is_named() -> None:
    with pytest.raises(InputError, match="QUANTIZATION='int3' is not usable"):
        load(environ={"QUANTIZATION": "int3"})


# --- keys ---------------------------------------------------------------------------------------


def test_keys_come_from_variables_and_files_together(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# of the team\n\n  second-key  \nthird-key\r\n")
    environ = {
        "UNIFIED_EMBEDDINGS_API_KEYS": "first-key",
        "UNIFIED_EMBEDDINGS_API_KEY_FILE": str(file),
    }
    settings, _ = load(environ=environ)
    assert settings.api_keys == ("first-key", "second-key", "third-key")
    settings, _ = load(flags={"api_key_file": file})
    assert settings.api_keys == ("second-key", "third-key")


def test_a_file_without_keys_does_not_leave_the_service_open(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    with pytest.raises(InputError, match="cannot be read"):
        read_keys(file)
    file.write_text("# none yet\n")
    with pytest.raises(InputError, match="holds none"):
        read_keys(file)


def test_an_indented_comment_is_no_key(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("  # of the first client\n one \n\ntwo\n")
    assert read_keys(file) == ("one", "two")


def test_blank_keys_do_not_leave_the_service_open() -> None:
    with pytest.raises(InputError, match="API_KEYS is set and holds no key"):
        load(environ={"UNIFIED_EMBEDDINGS_API_KEYS": " , "})


@pytest.mark.parametrize("text", ['api_keys = "quartz"', 'api_keys = ["quartz", 1]'])
def test_no_message_and_no_repr_shows_a_key(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="api_keys: expected a list of texts") as caught:
        load(text, folder=tmp_path)
    assert "quartz" not in str(caught.value)
    assert "quartz" not in repr(ServiceSettings(api_keys=("quartz",)))
    with pytest.raises(InputError) as caught:
        ServiceSettings(api_keys="quartz")  # type: ignore[arg-type]
    assert "quartz" not in str(caught.value)
    with pytest.raises(InputError) as caught:
        ServiceSettings(api_keys=("quärtz",))
    assert "quärtz" not in str(caught.value)
