"""The model card: from what, on what, against which reference and how a model was trained."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCardData

from tokenq import __version__

if TYPE_CHECKING:
    from tokenq.training.trainer import PreferenceTrainer

CARD_FILE = "README.md"
_LIBRARIES = ("torch", "transformers", "accelerate", "peft", "datasets")


def model_card(trainer: "PreferenceTrainer") -> str:
    """Return the card as Markdown with the metadata block that the hub reads."""
    sections = [
        f"---\n{_metadata(trainer).to_yaml()}\n---",
        f"# {trainer.args.hub_model_id or trainer.args.run_name or 'A model trained with tokenq'}",
        f"Trained from `{trainer.model_name or 'an unnamed model'}` with "
        f"{_objectives(trainer)} by tokenq.",
        _table("Training", _settings(trainer)),
        _reference(trainer),
        *_data(trainer),
        _table("Metrics", _last_metrics(trainer)),
        _table("Versions", _versions()),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _metadata(trainer: "PreferenceTrainer") -> ModelCardData:
    # A folder on somebody's disk is no hub name.
    named = trainer.model_name if _is_hub_name(trainer.model_name) else None
    hub_sets = [s.source for s in trainer.splits.values() if _is_hub_name(s.source)]
    return ModelCardData(
        library_name="peft" if hasattr(trainer.model, "peft_config") else "transformers",
        base_model=named,
        datasets=hub_sets or None,
        tags=list(trainer._tag_names),
    )


def _is_hub_name(name: str) -> bool:
    looks_like_one = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    return looks_like_one and ":" not in name and not Path(name).exists()


def _objectives(trainer: "PreferenceTrainer") -> str:
    terms = trainer.mixture.terms
    if len(terms) == 1:
        return f"the objective `{terms[0].name}`"
    return "the objectives " + ", ".join(f"{t.weight:g} x `{t.name}`" for t in terms)


def _settings(trainer: "PreferenceTrainer") -> dict[str, Any]:
    args = trainer.args
    settings: dict[str, Any] = {
        f"objective {term.name}": repr(term.objective) for term in trainer.mixture.terms
    }
    settings |= {
        "optimiser steps": f"{trainer.state.global_step} of {trainer.state.max_steps}",
        "global batch": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "learning rate": args.learning_rate,
        "seed": args.seed,
        "tokens seen": trainer.state.num_input_tokens_seen,
    }
    return settings | trainer.card_notes


def _reference(trainer: "PreferenceTrainer") -> str:
    identity = trainer.reference_identity
    if identity is None:
        return "## Reference\n\nNone: no objective needs one."
    return _table(
        "Reference",
        {
            "name": identity.name or "unnamed",
            "revision": identity.revision or "",
            "weight hash": identity.weight_hash,
        },
    )


def _data(trainer: "PreferenceTrainer") -> list[str]:
    sections = []
    for name, split in trainer.splits.items():
        title = f"Data: {name or 'evaluation'}"
        facts = {"source": split.source, "kind": split.kind, "fingerprint": split.fingerprint}
        section = _table(title, facts)
        if split.report is not None:
            section += f"\n\nPreparation:\n\n```\n{split.report.render()}\n```"
        sections.append(section)
    return sections


def _last_metrics(trainer: "PreferenceTrainer") -> dict[str, Any]:
    last: dict[str, Any] = {}
    for line in trainer.state.log_history:
        last |= line
    return {name: value for name, value in sorted(last.items()) if not name.startswith("total_")}


def _versions() -> dict[str, str]:
    versions = {"tokenq": __version__, "python": platform.python_version()}
    return versions | {name: version(name) for name in _LIBRARIES}


def _table(title: str, rows: dict[str, Any]) -> str:
    lines = [f"| {name} | {_cell(value)} |" for name, value in rows.items() if value != ""]
    if not lines:
        return ""
    return "\n".join([f"## {title}", "", "| | |", "|---|---|", *lines])


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
