"""One run of `tokenq train`: check everything, prepare the data, load the model, train, save."""

import json
from pathlib import Path
from typing import Any

from accelerate import PartialState
from peft import LoraConfig, PeftConfig
from transformers.trainer_utils import IntervalStrategy

from tokenq.data import Prepared, Rows, holds_token_ids, load_rows, load_tokenised
from tokenq.errors import UserError
from tokenq.models import load_tokenizer
from tokenq.storage import atomic_file, write_text
from tokenq.training import checkpoints, record
from tokenq.training.arguments import DataArguments, ModelArguments, RunArguments
from tokenq.training.config import PreferenceConfig
from tokenq.training.dataset import Split, prepare_split
from tokenq.training.mixture import Mixture
from tokenq.training.preflight import check_writable
from tokenq.training.trainer import PreferenceTrainer


def run(
    model: ModelArguments,
    data: DataArguments,
    config: PreferenceConfig,
    options: RunArguments,
    command: str,
) -> dict[str, float]:
    """Train as the arguments say and return the metrics of the end.

    Raises UserError for anything that can be known to be wrong, before the model is loaded.
    """
    folder = config.folder
    name = _required("model_name_or_path", model.model_name_or_path)
    mixture = Mixture.from_config(config)
    check_writable(folder)
    settings = record.settings_of(model, data, config) | {"processes": config.world_size}
    with config.main_process_first(desc="looking at the output folder"):
        checkpoint = _starting_point(folder, settings, config, options)
    tokenizer = load_tokenizer(
        name, revision=model.model_revision, trust_remote_code=model.trust_remote_code
    )
    with config.main_process_first(desc="preparing the data"):
        splits = {
            split: prepare_split(rows, split, tokenizer, config, mixture)
            for split, rows in _rows(data, config, mixture).items()
        }
    content = {split: prepared.fingerprint for split, prepared in splits.items()}
    state = PartialState()
    if state.is_main_process:
        _report(splits, folder)
        _refuse_other_data(folder, content, checkpoint, config)
    state.wait_for_everyone()
    config.model_init_kwargs = _model_options(model, config)
    trainer = PreferenceTrainer(
        name,
        model.reference,
        args=config,
        train_dataset=splits["train"],
        eval_dataset=splits.get("evaluation"),
        processing_class=tokenizer,
        peft_config=_adapter(model),
        card_notes={"command": f"`{command}`"},
    )
    if state.is_main_process:  # not sooner: what is refused must not hold the folder
        record.claim(folder, settings, {"command": command, "data": content})
    metrics = trainer.train(str(checkpoint) if checkpoint else None).metrics
    _finish(trainer, metrics)
    return metrics


def _required(name: str, value: str | None) -> str:
    if not value:
        raise UserError(f"{name}: is required, as --{name} or in the --config file")
    return value


def _starting_point(
    folder: Path, settings: dict[str, Any], config: PreferenceConfig, options: RunArguments
) -> Path | None:
    """Settle which run the folder belongs to and from which checkpoint this one goes on."""
    explicit = config.resume_from_checkpoint
    if options.overwrite_output_dir and explicit:
        raise UserError("overwrite_output_dir: cannot go together with resume_from_checkpoint")
    if options.overwrite_output_dir:
        if PartialState().is_main_process:
            record.clear(folder)
        return None
    if explicit:
        return checkpoints.resolve_resume(explicit, folder)
    record.refuse_other_run(folder, settings)
    return checkpoints.last_complete(folder)


def _refuse_other_data(
    folder: Path, data: dict[str, str], checkpoint: Path | None, config: PreferenceConfig
) -> None:
    path = folder / record.RECORD_FILE
    if checkpoint is None or config.resume_from_checkpoint or not path.is_file():
        return
    then = json.loads(path.read_text(encoding="utf-8")).get("data")
    if then != data:
        raise UserError(
            f"output_dir: {folder} holds a run on other rows (the data changed under its name); "
            "choose another folder, or --overwrite_output_dir to start over"
        )


def _rows(
    data: DataArguments, config: PreferenceConfig, mixture: Mixture
) -> dict[str, Rows | Prepared]:
    source = _required("dataset_name", data.dataset_name)
    wanted = {"train": (source, data.dataset_train_split)}
    if config.eval_strategy != IntervalStrategy.NO:
        evaluation = data.eval_dataset_name or source
        if evaluation == source and data.dataset_test_split is None and Path(source).is_file():
            raise UserError("eval_strategy: needs rows to evaluate on, set eval_dataset_name")
        wanted["evaluation"] = (evaluation, data.dataset_test_split or "test")
    rows: dict[str, Rows | Prepared] = {}
    for name, (place, split) in wanted.items():
        origin: dict[str, Any] = {
            "split": split, "config": data.dataset_config, "revision": data.dataset_revision,
        }  # fmt: skip
        if not data.dataset_streaming and holds_token_ids(place, **origin):
            limit = data.dataset_limit if name == "train" else None
            rows[name] = load_tokenised(place, **origin, limit=limit)
            mixture.check_data(rows[name].kind, place)
            continue
        rejects = config.folder / f"rejects-{name}.jsonl" if data.skip_bad_rows else None
        loaded = load_rows(
            place,
            **origin,
            streaming=data.dataset_streaming and name == "train",
            rejects=rejects,
            limit=data.dataset_limit if name == "train" else None,
        )
        mixture.check_data(loaded.kind, loaded.source)
        rows[name] = loaded
    if data.dataset_streaming and config.max_steps <= 0:
        raise UserError("dataset_streaming: needs max_steps, since the length is unknown")
    if data.dataset_streaming and mixture.needs_reference and config.precompute_ref_log_probs:
        raise UserError(
            "dataset_streaming: rows cannot be scored before training; set "
            "precompute_ref_log_probs to false"
        )
    return rows


def _report(splits: dict[str, Split], folder: Path) -> None:
    """Print what preparation did, and save it as `preparation.json`."""
    reports = {name: split.report for name, split in splits.items() if split.report is not None}
    for name, report in reports.items():
        print(f"{name}: {splits[name].source}\n{report.render()}\n", flush=True)
    text = json.dumps({name: report.to_dict() for name, report in reports.items()}, indent=2)
    write_text(folder / "preparation.json", text + "\n")


def _model_options(model: ModelArguments, config: PreferenceConfig) -> dict[str, Any]:
    given = config.model_init_kwargs or {}
    if not isinstance(given, dict):
        raise UserError(f"model_init_kwargs: {given!r} is not a JSON object")
    named = {
        "dtype": model.dtype,
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "trust_remote_code": model.trust_remote_code or None,
    }
    return {key: value for key, value in named.items() if value is not None} | given


def _adapter(model: ModelArguments) -> PeftConfig | None:
    if not model.use_peft:
        return None
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=model.lora_r,
        lora_alpha=model.lora_alpha,
        lora_dropout=model.lora_dropout,
        target_modules=model.lora_target_modules or "all-linear",
    )


def _finish(trainer: PreferenceTrainer, metrics: dict[str, float]) -> None:
    """Save the final model, the log and the metrics."""
    trainer.save_model()
    folder = trainer.args.folder
    if trainer.is_world_process_zero():
        with atomic_file(folder / checkpoints.STATE_FILE) as path:
            trainer.state.save_to_json(str(path))
        write_text(folder / "train_results.json", json.dumps(metrics, indent=2) + "\n")
        print(f"saved in {folder} after {trainer.state.global_step} steps", flush=True)
    trainer.end()
