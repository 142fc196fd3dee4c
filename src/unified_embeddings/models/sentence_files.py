"""The files in which sentence-transformers describes a model, and what of them is not done here.

What lives here: reading `modules.json`, `1_Pooling/config.json` and the settings beside them, and
refusing whatever would make sentence-transformers compute other vectors than this package does.
What does not: deciding between these files and a model's spec (`checkpoint`).
"""

from __future__ import annotations

import json

from unified_embeddings.models.files import ModelFiles

STANDARD_MODULES = frozenset(("Transformer", "Pooling", "Normalize"))
"""The modules that every engine runs."""
POOLING_SETTINGS = "1_Pooling/config.json"
_MODULES = "modules.json"
_SETTINGS = "sentence_bert_config.json"
_PROMPTS = "config_sentence_transformers.json"
_MODULE_FOLDERS = {"Transformer": "", "Pooling": "1_Pooling"}
"""Module → the only subfolder in which its settings are read here."""
_UNREAD_SETTINGS = ("model_args", "model_kwargs", "config_args", "config_kwargs", "tokenizer_args")
"""Settings with which a file can change how sentence-transformers loads the model."""


def read_modules(files: ModelFiles, *, allow_own_code: bool) -> list[str] | None:
    """Return the class names of a model's modules, or None if `modules.json` is missing.

    Most models have ["Transformer", "Pooling", "Normalize"].

    Args:
        files: The model's folder.
        allow_own_code: Whether modules may come from elsewhere than sentence-transformers.

    Raises:
        ModelLoadError: If the file is not a list of modules, names code that is not allowed, or
            puts a module's settings into a subfolder that is not read.
    """
    if not files.has(_MODULES):
        return None
    entries = _read_module_entries(files)
    if not entries:
        raise files.problem(f"{files.folder / _MODULES} lists no modules")
    names = []
    for class_path, subfolder in entries:
        # sentence-transformers imports a class of any other package: that is remote code.
        if not class_path.startswith("sentence_transformers.") and not allow_own_code:
            raise files.problem(
                f"{_MODULES} asks for {class_path}, the model's own code; set remote_code in its "
                "spec if you trust it"
            )
        name = class_path.rpartition(".")[2]
        if subfolder != _MODULE_FOLDERS.get(name, subfolder):
            raise files.problem(
                f"{_MODULES} has {name} in {subfolder!r}, which is not read; put it where "
                "sentence-transformers puts it"
            )
        names.append(name)
    return names


def _read_module_entries(files: ModelFiles) -> list[tuple[str, str]]:
    """Return each module's class path and subfolder."""
    path = files.folder / _MODULES
    try:
        entries = json.loads(path.read_bytes())
        return [(str(entry["type"]), str(entry.get("path", ""))) for entry in entries]
    except (ValueError, OSError, TypeError, KeyError, AttributeError) as error:
        raise files.problem(f"{path} is not a list of modules: {error!r}") from error


def read_pooling_modes(files: ModelFiles) -> set[str]:
    """Return the pooling modes that `1_Pooling/config.json` asks for: {"cls"}, {"mean"}, ...

    sentence-transformers has two ways to write them: older flags (`pooling_mode_cls_token`), and a
    newer name or list of names (`pooling_mode`). A file may have both.

    Raises:
        ModelLoadError: If the file is missing or unreadable, or excludes prompts from pooling.
    """
    settings = files.read_json(POOLING_SETTINGS)
    if settings.get("include_prompt", True) is not True:
        raise files.problem(
            f"{POOLING_SETTINGS} leaves prompts out of pooling, which is not done here"
        )
    modes = set()
    for key, value in settings.items():
        if key.startswith("pooling_mode_") and value is True:
            flag = key.removeprefix("pooling_mode_")
            modes.add(flag.removesuffix("_token").removesuffix("_tokens"))
    named_modes = settings.get("pooling_mode")
    if isinstance(named_modes, list):
        modes.update(str(mode) for mode in named_modes)
    elif named_modes:
        modes.add(str(named_modes))
    return modes


def read_sentence_settings(files: ModelFiles) -> dict[str, object]:
    """Return `sentence_bert_config.json`, with the length limit and lower-casing; {} if missing.

    Raises:
        ModelLoadError: If the file is unreadable, or changes how the model is loaded.
    """
    if not files.has(_SETTINGS):
        return {}
    settings = files.read_json(_SETTINGS)
    unread_names = [name for name in _UNREAD_SETTINGS if settings.get(name)]
    if unread_names:
        raise files.problem(f"{_SETTINGS} sets {', '.join(unread_names)}, which are not read here")
    return settings


def check_dense_layers(files: ModelFiles) -> None:
    """Refuse dense layers with an activation that is not one of torch's.

    sentence-transformers would import such an activation: code of the model's own.

    Raises:
        ModelLoadError: If a layer has one.
    """
    for path in files.folder.glob("[1-9]_Dense*/config.json"):
        name = f"{path.parent.name}/{path.name}"
        activation = str(files.read_json(name).get("activation_function", "torch."))
        if not activation.startswith("torch."):
            raise files.problem(f"{name} has the activation {activation}, not one of torch's")


def check_default_prompt(files: ModelFiles, *, has_prefixes: bool) -> None:
    """Refuse a prompt that sentence-transformers puts before every text, unless it is replaced.

    Args:
        files: The model's folder.
        has_prefixes: Whether the model's spec names a prefix for queries or documents.

    Raises:
        ModelLoadError: If there is such a prompt.
    """
    if has_prefixes or not files.has(_PROMPTS):
        return
    settings = files.read_json(_PROMPTS)
    prompts = settings.get("prompts")
    if not isinstance(prompts, dict):
        return
    prompt = prompts.get(settings.get("default_prompt_name"))
    if prompt:
        raise files.problem(
            f"{_PROMPTS} puts {prompt!r} before every text by default; name it as query_prefix and "
            "document_prefix in its spec"
        )
