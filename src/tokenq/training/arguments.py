"""Command line and YAML of `tokenq train`: one flat list of names, flags over file."""

import argparse
import dataclasses
import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from tokenq.errors import UserError
from tokenq.training.config import PreferenceConfig
from tokenq.training.hyperparameters import given, hyperparameters


@dataclass
class ModelArguments:
    """Which model is trained, against which reference, in full or by an adapter."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Hub name, folder, or bundled:NAME. Required."}
    )
    model_revision: str | None = field(default=None, metadata={"help": "Revision on the hub."})
    reference: list[str] | None = field(
        default=None,
        metadata={
            "help": "Model that rewards are measured against; unset: the model as it was "
            "before training. Also none, uniform, marginal, marginal:NAME; several: their mean."
        },
    )
    dtype: str = field(
        default="float32",
        metadata={
            "help": "Type of the weights in training; with bf16 mixed precision leave them "
            "at float32."
        },
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "Attention implementation of transformers."}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run model code that comes with the weights."}
    )
    use_peft: bool = field(default=False, metadata={"help": "Train a LoRA adapter only."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapter."})
    lora_alpha: int = field(default=32, metadata={"help": "Scale of the adapter, over its rank."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout inside the adapter."})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Modules to adapt; unset: all linear layers."}
    )


@dataclass
class DataArguments:
    """Which rows are trained and evaluated on."""

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "File (.jsonl, .json, .csv, .parquet), folder, hub name, or "
            "bundled:film-reviews. Required."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration on the hub."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Revision on the hub."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str | None = field(
        default=None,
        metadata={"help": "Split to evaluate on; unset: `test` where eval_strategy asks for one."},
    )
    eval_dataset_name: str | None = field(
        default=None,
        metadata={"help": "Source of the evaluation rows; unset: dataset_name."},
    )
    dataset_streaming: bool = field(
        default=False, metadata={"help": "Read rows as they are used; needs max_steps."}
    )
    dataset_limit: int | None = field(default=None, metadata={"help": "Use the first rows only."})
    skip_bad_rows: bool = field(
        default=False,
        metadata={
            "help": "Write malformed rows to rejects-train.jsonl in output_dir instead of stopping."
        },
    )


@dataclass
class RunArguments:
    """What to do with an output folder that is in use."""

    overwrite_output_dir: bool = field(
        default=False,
        metadata={"help": "Delete the run that output_dir holds and start over."},
    )


ARGUMENT_CLASSES = (ModelArguments, DataArguments, PreferenceConfig, RunArguments)

GROUPS = {
    "model": [f.name for f in dataclasses.fields(ModelArguments)] + ["disable_dropout"],
    "data": [f.name for f in dataclasses.fields(DataArguments)]
    + ["max_length", "max_prompt_length", "truncation_mode", "segments", "step_pattern",
       "step_pairs", "dataset_num_proc"],
    "objective": ["loss_type", "loss_weights", "beta", "label_smoothing", "objective_args"],
    "hyper-parameters of single objectives": list(hyperparameters()),
    "token rewards": ["oracle", "oracle_reference", "oracle_beta"],
    "reference": [
        "precompute_ref_log_probs", "reference_cache_dir",
        "sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps",
    ],
    "optimisation": [
        "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs",
        "max_steps", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay",
        "max_grad_norm", "optim", "seed",
    ],
    "speed and memory": [
        "token_budget", "compile_layers", "bf16", "activation_checkpointing", "fsdp",
    ],
    "evaluation": [
        "eval_strategy", "eval_steps", "per_device_eval_batch_size", "metric_for_best_model",
        "load_best_model_at_end", "early_stopping_patience", "early_stopping_threshold",
    ],
    "monitor": ["monitor", "monitor_budget", "monitor_steps", "monitor_samples"],
    "output": [
        "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "save_strategy",
        "save_steps", "save_total_limit", "logging_steps", "report_to", "run_name", "push_to_hub",
    ],
}  # fmt: skip
"""What `--help` shows, by group; the other TrainingArguments are accepted as well."""


class _Formatter(argparse.HelpFormatter):
    """One spelling of each option, with its default."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=100)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if action.nargs == 0:
            return action.option_strings[0]
        shown = action.dest.upper() if len(list(action.choices or ())) > 6 else None
        arguments = shown or self._format_args(action, action.dest.upper())
        return f"{action.option_strings[0]} {arguments}"

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, argparse.SUPPRESS, []) or not action.help:
            return action.help
        return f"{action.help} (default: %(default)s)"


class TrainParser(HfArgumentParser):
    """The parser of all argument classes; what is wrong becomes a UserError of one line."""

    def __init__(self) -> None:
        super().__init__(
            ARGUMENT_CLASSES,  # type: ignore[arg-type]
            prog="tokenq train",
            usage="tokenq train --config FILE.yaml [--name value ...]",
            description="Fine-tune a model on preferences or on answers.",
            epilog="Every argument of transformers.TrainingArguments is accepted too (--help-all). "
            "The YAML file holds the same names; flags override it. Started again with the same "
            "settings and output_dir, the run goes on from its last checkpoint.",
            formatter_class=_Formatter,
            allow_abbrev=False,
        )
        self.add_argument("--config", help="YAML file with the names below.")
        for parameter in hyperparameters().values():
            parameter.add_to(self)
        self.add_argument("--help-all", action="store_true", help="Show every argument.")

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing two screens of usage."""
        raise UserError(" ".join(message.split()))

    def format_short_help(self) -> str:
        """Help on the arguments of `GROUPS`, group by group."""
        by_name = {a.dest: a for a in self._actions if not a.option_strings[0].startswith("--no_")}
        groups = {title: [by_name[name] for name in names] for title, names in GROUPS.items()}
        general = [a for a in self._actions if a.dest in ("help", "config", "help_all")]
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, [])
        formatter.add_text(self.description)
        for title, actions in {"general": general, **groups}.items():
            formatter.start_section(title)
            formatter.add_arguments(actions)
            formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()

    def names(self) -> list[str]:
        """Every accepted name."""
        spelled = {option.lstrip("-") for a in self._actions for option in a.option_strings}
        known = spelled | {action.dest for action in self._actions}
        return sorted(known - {"h", "help", "help_all", "help-all", "config"})


def parse(
    argv: Sequence[str],
) -> tuple[ModelArguments, DataArguments, PreferenceConfig, RunArguments]:
    """Read `--config` and flags; raises UserError for unknown names and values that do not fit."""
    parser = TrainParser()
    path = _config_path(argv)
    from_file = yaml_arguments(Path(path), parser.names()) if path else []
    namespace, rest = parser.parse_known_args([*from_file, *argv])
    if rest:
        raise UserError(_unknown(rest[0].split("=")[0], parser.names(), "the command line"))
    values = vars(namespace)
    try:
        model, data, config, options = (_filled(cls, values) for cls in ARGUMENT_CLASSES)
    except (ValueError, ImportError) as error:
        # transformers checks combinations of its arguments when they are made.
        raise UserError(" ".join(str(error).split())) from error
    if isinstance(config.objective_args, dict) or config.objective_args is None:
        config.objective_args = {**(config.objective_args or {}), **given(values)} or None
    return model, data, config, options


def _filled(cls: type, values: Mapping[str, Any]) -> Any:
    return cls(**{f.name: values[f.name] for f in dataclasses.fields(cls) if f.init})


def yaml_arguments(path: Path, names: Sequence[str]) -> list[str]:
    """Return a flat YAML file as command-line arguments, so that both are typed the same way."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UserError(f"--config: {path} cannot be read ({error.strerror})") from error
    except yaml.YAMLError as error:
        raise UserError(f"--config: {path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"--config: {path} must hold `name: value` lines")
    for key in values:
        if key not in names:
            raise UserError(_unknown(str(key), names, str(path)))
    return [word for key, value in values.items() for word in _words(key, value)]


def _words(key: str, value: Any) -> list[str]:
    if value is None or value == []:
        return []
    if isinstance(value, list):
        return [f"--{key}", *map(str, value)]
    if isinstance(value, dict):
        return [f"--{key}={json.dumps(value)}"]
    return [f"--{key}={str(value).lower() if isinstance(value, bool) else value}"]


def _config_path(argv: Sequence[str]) -> str | None:
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--config")
    try:
        path: str | None = finder.parse_known_args(list(argv))[0].config
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from error
    return path


def _unknown(name: str, names: Sequence[str], where: str) -> str:
    plain = name.lstrip("-").replace("-", "_")
    near = difflib.get_close_matches(plain, names, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else "tokenq train --help lists the names"
    return f"{where}: unknown argument {name!r}; {hint}"
