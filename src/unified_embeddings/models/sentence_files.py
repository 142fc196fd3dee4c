"""The files in which sentence-transformers describes a model, and what of them is not done here.

What lives here: reading `modules.json`, `1_Pooling/config.json` and the settings beside them, and
refusing whatever would make sentence-transformers compute other vectors than this package does.
What does not: deciding between these files and a model's spec (`checkpoint`).
"""

from __future__ import annotations

from typing import NamedTuple

from unified_embeddings.models.files import ModelFiles, is_inside

STANDARD_MODULES = frozenset(("Transformer", "Pooling", "Normalize"))
"""The modules that every engine runs."""
POOLING_SETTINGS = "1_Pooling/config.json"
MODULES = "modules.json"
PROMPTS = "config_sentence_transformers.json"
_ARCHITECTURES = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
SENTENCE_SETTINGS = tuple(f"sentence_{name}_config.json" for name in _ARCHITECTURES)
"""Names of the file with the length limit, of which sentence-transformers reads the first."""
_KNOWN_MODULES = STANDARD_MODULES | {
    "Dense",
    "Dropout",
    "LayerNorm",
    "MLMTransformer",
    "SpladePooling",
    "WeightedLayerPooling",
}
"""sentence-transformers' modules that read no files but their own, and import no other classes."""
_MODULE_FOLDERS = {"Transformer": "", "Pooling": "1_Pooling"}
"""Module → the only subfolder in which its settings are read here."""
_UNREAD_SETTINGS = (
    "model_args",
    "model_kwargs",
    "config_args",
    "config_kwargs",
    "tokenizer_args",
    "processor_kwargs",
    "processing_kwargs",
)
"""Settings with which a file can change how sentence-transformers loads the model."""


class ModuleEntry(NamedTuple):
    """One of a model's modules, as `modules.json` lists it.

    Attributes:
        name: Name of its class, without the path.
        folder: Subfolder with its files; "" for the model's own folder.
    """

    name: str
    folder: str


def read_modules(files: ModelFiles, *, allow_own_code: bool) -> list[ModuleEntry] | None:
    """Return a model's modules, or None if `modules.json` is missing.

    Most models have "Transformer", "Pooling" and "Normalize".

    Args:
        files: The model's folder.
        allow_own_code: Whether modules may come from elsewhere than sentence-transformers.

    Raises:
        ModelLoadError: If the file is not a list of modules, names code that is not allowed, or
            puts a module's settings into a subfolder that is not read.
    """
    if not files.has(MODULES):
        return None
    modules = []
    for class_path, folder in _read_class_paths(files):
        # sentence-transformers imports a class of any other package: that is remote code.
        if not class_path.startswith("sentence_transformers.") and not allow_own_code:
            raise files.problem(
                f"{MODULES} asks for {class_path}, the model's own code; set remote_code in its "
                "spec if you trust it"
            )
        name = class_path.rpartition(".")[2]
        if name not in _KNOWN_MODULES and not allow_own_code:
            raise files.problem(f"{MODULES} asks for the module {name}, which is not run here")
        if folder != _MODULE_FOLDERS.get(name, folder) or not is_inside(folder or name):
            raise files.problem(
                f"{MODULES} has {name} in {folder!r}, which is not read; put it where "
                "sentence-transformers puts it"
            )
        modules.append(ModuleEntry(name, folder))
    if not modules:
        raise files.problem(f"{files.folder / MODULES} lists no modules")
    return modules


def _read_class_paths(files: ModelFiles) -> list[tuple[str, str]]:
    """Return each module's class path and subfolder."""
    entries = files.read_any_json(MODULES)
    path = files.folder / MODULES
    if not isinstance(entries, list):
        raise files.problem(f"{path} is not a list of modules, but {type(entries).__name__}")
    class_paths = []
    for entry in entries:
        if not isinstance(entry, dict) or "type" not in entry:
            raise files.problem(f"{path} is not a list of modules: it holds {entry!r:.80}")
        class_paths.append((str(entry["type"]), str(entry.get("path", ""))))
    return class_paths


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

    Models of other architectures have it under other names.

    Raises:
        ModelLoadError: If the file is unreadable, or changes how the model is loaded.
    """
    for name in SENTENCE_SETTINGS:
        if not files.has(name):
            continue
        settings = files.read_json(name)
        unread_names = [setting for setting in _UNREAD_SETTINGS if settings.get(setting)]
        if unread_names:
            raise files.problem(f"{name} sets {', '.join(unread_names)}, which are not read here")
        return settings
    return {}


def check_dense_layers(files: ModelFiles, modules: list[ModuleEntry]) -> None:
    """Refuse dense layers with an activation that is not one of torch's.

    sentence-transformers would import such an activation: code of the model's own.

    Args:
        files: The model's folder.
        modules: The modules that it lists.

    Raises:
        ModelLoadError: If a layer has one.
    """
    for module in modules:
        name = f"{module.folder}/config.json"
        if module.name != "Dense" or not files.has(name):
            continue
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
    if has_prefixes or not files.has(PROMPTS):
        return
    settings = files.read_json(PROMPTS)
    prompts = settings.get("prompts")
    if not isinstance(prompts, dict):
        return
    prompt = prompts.get(settings.get("default_prompt_name"))
    if prompt:
        raise files.problem(
            f"{PROMPTS} puts {prompt!r} before every text by default; name it as query_prefix and "
            "document_prefix in its spec"
        )
