"""What a service is started with, from a TOML file, the environment and flags.

What lives here: the service's own settings and their defaults. What does not: the model's options,
which are those of `UnifiedEmbeddingConfig` and are handed on as they came.
"""

from __future__ import annotations

import math
import sys
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from unified_embeddings.config.environment import PREFIX, read_options
from unified_embeddings.config.options import PipelineOptions
from unified_embeddings.errors import InputError
from unified_embeddings.serving.api_keys import read_keys
from unified_embeddings.types import Options
from unified_embeddings.validation import require_whole_number

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LOOPBACK = ("127.0.0.1", "::1", "localhost")
"""Names of this machine that no other reaches."""
RUNNERS = ("processes", "ray")
"""What can run the workers of a service."""
_MIB = 1024 * 1024
_MODEL_OPTIONS = sorted(option.name for option in fields(PipelineOptions) if option.name != "cache")
"""What the table `[model]` may have; the cache is set by variables."""


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """What a service is started with, besides its model.

    Attributes:
        host: The address to listen on; only this machine unless another is named.
        port: The port to listen on; 0 takes a free one.
        served_names: Further names that requests may give the model, besides its own.
        batch_tokens: The most tokens of a pass, in which texts of several requests share the
            engine. None takes 1,024 on a CPU, where a short query waits for the pass before it,
            and 16,384 elsewhere. The model's own option of that name bounds what a forward takes
            of a pass; `load_settings` sets both.
        max_waiting_tokens: How many tokens may wait before requests are refused with 429.
        max_texts: The most texts of one request.
        max_request_tokens: The most tokens of one request, after cutting.
        max_body_bytes: The most bytes of a request's body. JSON made to do harm takes 24 times its
            size in memory while it is read, and a body of more than 1,048,576 values (or of
            `max_request_tokens`, if those are more) is refused.
        auto_truncate: Whether a text over the model's length is cut where the request does not
            say; otherwise it is refused.
        request_timeout: Seconds in which a request is answered, or fails.
        receive_timeout: Seconds in which a request's body must arrive.
        drain_timeout: Seconds that requests in hand get after SIGTERM; the default is below the 30
            after which Kubernetes kills.
        api_keys: Keys of which a request must bring one; none leaves the service open.
        store_path: Folder of an embedded Qdrant store for `/search`.
        qdrant_url: Address of a Qdrant server for `/search`.
        collection: The collection that `/search` reads; None switches it off.
        images: Whether `/embed_image` is offered.
        inspect: Whether the inspector's pages are offered under `/inspect`, to this machine alone.
        workers: Processes behind the port; on Ray, the most of them.
        runner: "processes" on this machine, or "ray".

    Raises:
        InputError: If a value is out of range.

    Example:
        >>> from unified_embeddings.serving.settings import ServiceSettings
        >>> ServiceSettings(port=9000, api_keys=("secret",))
        ServiceSettings(host='127.0.0.1', port=9000, ...)
    """

    host: str = "127.0.0.1"
    port: int = 8000
    served_names: tuple[str, ...] = ()
    batch_tokens: int | None = None
    max_waiting_tokens: int = 262_144
    max_texts: int = 2048
    max_request_tokens: int = 1_048_576
    max_body_bytes: int = 16 * _MIB
    auto_truncate: bool = True
    request_timeout: float = 60.0
    receive_timeout: float = 30.0
    drain_timeout: float = 25.0
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    store_path: str | None = None
    qdrant_url: str | None = None
    collection: str | None = None
    images: bool = False
    inspect: bool = False
    workers: int = 1
    runner: str = "processes"

    def __post_init__(self) -> None:
        for name in ("served_names", "api_keys"):
            if isinstance(getattr(self, name), str):  # Each letter would be a name, or a key.
                raise InputError(f"{name} must be a tuple of texts, got one text")
        require_whole_number("port", self.port, least=0)
        if self.port > 65535:
            raise InputError(f"port must be <= 65535, got {self.port}")
        for name in (
            "max_waiting_tokens",
            "max_texts",
            "max_request_tokens",
            "max_body_bytes",
            "workers",
        ):
            require_whole_number(name, getattr(self, name))
        if self.batch_tokens is not None:
            require_whole_number("batch_tokens", self.batch_tokens)
        for name in ("request_timeout", "receive_timeout", "drain_timeout"):
            seconds = getattr(self, name)
            if not 0 < seconds < math.inf:
                raise InputError(f"{name} must be seconds > 0, got {seconds!r}")
        if self.runner not in RUNNERS:
            raise InputError(f"runner must be {' or '.join(RUNNERS)}, got {self.runner!r:.80}")
        if any(
            not key.strip() or not key.isascii() or not key.isprintable() for key in self.api_keys
        ):
            raise InputError("an API key must be printable ASCII and not blank")
        if self.collection is not None and not (self.store_path or self.qdrant_url):
            raise InputError("a collection for /search needs --path or --url to open it at")
        if self.inspect:
            self._check_inspector()
        if self.store_path is not None and (self.workers > 1 or self.runner == "ray"):
            raise InputError(
                "several workers cannot open one embedded store; serve it with one worker, or copy "
                "it to a Qdrant server and name its url"
            )

    def _check_inspector(self) -> None:
        """Refuse the inspector where its pages would be open to others, or to nobody."""
        if self.collection is None:
            raise InputError("--inspect shows a collection; name it with --collection")
        if self.host not in LOOPBACK:
            raise InputError(
                f"--inspect shows passages to this machine alone, and --host is {self.host}; serve "
                "on 127.0.0.1, or run `unified-embeddings inspect` beside the service"
            )
        if self.api_keys:
            raise InputError(
                "a browser sends no API key, so --inspect cannot be used with keys; run "
                "`unified-embeddings inspect` beside the service"
            )
        if self.workers > 1 or self.runner == "ray":
            raise InputError("--inspect runs in one process; leave --workers and Ray out")


def load_settings(
    file: Path | None,
    environ: Mapping[str, str],
    flags: Mapping[str, Any],
    model_flags: Mapping[str, Any],
) -> tuple[ServiceSettings, Options]:
    """Read a service's settings and its model's options; flags win over variables over the file.

    Args:
        file: A TOML file: settings at its top, the model's options in a table `[model]`.
        environ: Variables. UNIFIED_EMBEDDINGS_HOST, _PORT and so on name each setting, and those
            of `UnifiedEmbeddingConfig.from_env` the model's options; GPU_DEVICE is the device and
            QUANTIZATION the precision where no variable of ours names them.
            UNIFIED_EMBEDDINGS_API_KEYS lists keys with commas, _API_KEY_FILE names a file with one
            in each line. _BATCH_TOKENS is the service's and the model's, as batch_tokens is from a
            flag or from the file's top, unless the table `[model]` has its own.
        flags: Settings from the command line; None counts as not given.
        model_flags: The model's options from the command line; None counts as not given.

    Returns:
        The settings, and the options of `UnifiedEmbeddingConfig`.

    Raises:
        InputError: If the file cannot be read, or a setting is unknown, of the wrong type or out
            of range; it is named.
    """
    from_file, model_from_file = _read_file(file)
    from_environment = _read_environment(environ)
    given = {name: value for name, value in flags.items() if value is not None}
    values = {**from_file, **from_environment, **given}
    key_file = values.pop("api_key_file", None)
    if key_file is not None:
        values["api_keys"] = (*values.get("api_keys", ()), *read_keys(Path(str(key_file))))
    settings = ServiceSettings(**values)
    return settings, _read_model_options(environ, model_from_file, model_flags, settings)


def _read_model_options(
    environ: Mapping[str, str],
    from_file: Options,
    flags: Mapping[str, Any],
    settings: ServiceSettings,
) -> Options:
    """Return the options of `UnifiedEmbeddingConfig`; see `load_settings`."""
    options = dict(from_file)
    device = environ.get("GPU_DEVICE", "").strip()
    if device:
        options["device"] = device
    options |= read_options(environ, flags)
    if settings.batch_tokens is not None and "batch_tokens" not in from_file:
        options["batch_tokens"] = settings.batch_tokens
    return options


def _read_file(file: Path | None) -> tuple[Options, Options]:
    if file is None:
        return {}, {}
    try:
        values = tomllib.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise InputError(f"the settings file {file} cannot be read: {error}") from None
    model = values.pop("model", {})
    if isinstance(model, str):
        model = {"model_choice": model}
    if not isinstance(model, dict):
        raise InputError(f"{file}: model must be a name or a table of options, got {model!r:.80}")
    for name in model:
        if name not in _MODEL_OPTIONS:
            known = ", ".join(_MODEL_OPTIONS)
            raise InputError(f"{file}: [model] {name}: unknown option; the options are {known}")
    settings: Options = {}
    for name, value in values.items():
        settings[name] = _check(f"{file}: {name}", name, value)
    return settings, model


def _read_environment(environ: Mapping[str, str]) -> Options:
    settings: Options = {}
    for name in _TYPES:
        variable = PREFIX + name.upper()
        text = environ.get(variable, "").strip()
        if text:
            settings[name] = _read(variable, name, text)
    if settings.get("api_keys") == ():
        raise InputError(f"{PREFIX}API_KEYS is set and holds no key; list them with commas")
    return settings


def _field_types() -> dict[str, object]:
    hints = typing.get_type_hints(ServiceSettings)
    return {**hints, "api_key_file": str}


_TYPES = _field_types()
_SECRETS = ("api_keys",)
"""Settings whose values no message shows."""


def _check(label: str, name: str, value: object) -> object:
    """Return a value from the file as its setting's type.

    Raises:
        InputError: If there is no such setting, or the value has another type.
    """
    if name not in _TYPES:
        known = ", ".join(sorted(_TYPES))
        raise InputError(f"{label}: unknown setting; the settings are {known}, and [model]")
    expected = _kinds(name)
    shown = "something else" if name in _SECRETS else f"{value!r:.80}"
    if tuple in expected:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise InputError(f"{label}: expected a list of texts, got {shown}")
        return tuple(value)
    if float in expected and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) not in expected:
        names = " or ".join(kind.__name__ for kind in expected if kind is not type(None))
        raise InputError(f"{label}: expected {names}, got {shown}")
    return value


def _read(variable: str, name: str, text: str) -> object:
    """Return a variable's text as its setting's type.

    Raises:
        InputError: If it does not read as that.
    """
    expected = _kinds(name)
    if tuple in expected:
        return tuple(item.strip() for item in text.split(",") if item.strip())
    if bool in expected:
        flags = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
        if text.lower() not in flags:
            raise InputError(f"{variable}={text!r} is not usable: expected 1, 0, true or false")
        return flags[text.lower()]
    readers: list[Callable[[str], object]] = [kind for kind in (int, float) if kind in expected]
    if not readers:
        return text
    try:
        return readers[0](text)
    except ValueError:
        raise InputError(f"{variable}={text!r} is not usable: expected a number") from None


def _kinds(name: str) -> tuple[type, ...]:
    """Return the types that a setting's value may have."""
    hint = _TYPES[name]
    alternatives = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return tuple(typing.get_origin(kind) or kind for kind in alternatives)
