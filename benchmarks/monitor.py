"""What the monitor costs a run of preference training, ours and TRL's, in full and by LoRA.

    python -m benchmarks.monitor clock [--rounds 3] [--layers 2] [--arms tokenq-lora ...]
    python -m benchmarks.monitor budget [--layers 30] [--pairs 2400] [--arms tokenq-lora ...]

Film review pairs, SmolLM2-135M (its first `--layers` layers), fp32, AdamW, on CPU. `clock`: short
runs with a probe every few steps and without one, alternated; the difference of their processor
times beside what the monitor's hooks took by the same clock. `budget`: one run with the default
probe and a budget, whose hooks are timed. Writes results/monitor/{results.json,README.md}; an arm
that is measured again replaces the old one, the others stay.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.machine import describe
from tokenq.data.film_reviews import PairOptions
from tokenq.monitor import Monitor, MonitorFolder, ProbeOptions
from tokenq.storage import write_text

ARMS = ("tokenq-full", "tokenq-lora", "trl-full", "trl-lora")
TARGET = 0.03
CLOCK_STEPS, CLOCK_BATCH, CLOCK_EVERY = 12, 4, 4
CLOCK_OPTIONS = ProbeOptions(held_out=8, trained=8, responses=8, samples=0, new_tokens=24)
BATCH, HELD_OUT, LORA_RANK = 16, 64, 16


@dataclass(frozen=True)
class Job:
    """model: folder of the policy; layers: how many of it are kept; rows: training, held out."""

    model: Path
    layers: int
    train: Any
    held_out: Any
    batch: int


@dataclass
class Hooks:
    """What the monitor's hooks took."""

    seconds: float = 0.0
    processor: float = 0.0


class Timed(Monitor):
    """The monitor with its hooks timed from outside."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.hooks = Hooks()

    def _timed(self, hook: Callable[..., None], *args: Any, **options: Any) -> None:
        seconds, processor = time.perf_counter(), time.process_time()
        hook(*args, **options)
        self.hooks.seconds += time.perf_counter() - seconds
        self.hooks.processor += time.process_time() - processor

    def on_train_begin(self, *args: Any, **options: Any) -> None:
        self._timed(super().on_train_begin, *args, **options)

    def on_step_begin(self, *args: Any, **options: Any) -> None:
        self._timed(super().on_step_begin, *args, **options)

    def on_step_end(self, *args: Any, **options: Any) -> None:
        self._timed(super().on_step_end, *args, **options)

    def on_log(self, *args: Any, **options: Any) -> None:
        self._timed(super().on_log, *args, **options)

    def on_train_end(self, *args: Any, **options: Any) -> None:
        self._timed(super().on_train_end, *args, **options)


def rows(count: int, held_out: int) -> tuple[Any, Any]:
    """Film review pairs with token ids to come: training rows and held-out rows, as texts."""
    from tokenq.data import film_reviews

    train = film_reviews.load(options=PairOptions(gap=1.0, pairs=count))
    test = film_reviews.load("test", options=PairOptions(gap=1.0, pairs=held_out))
    names = ["prompt", "chosen", "rejected"]
    return train.select_columns(names), test.select_columns(names)


def trainer_of(arm: str, job: Job, steps: int, folder: Path) -> Any:
    """A trainer without the monitor."""
    who, how = arm.split("-")
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    model = AutoModelForCausalLM.from_pretrained(
        job.model, dtype=torch.float32, num_hidden_layers=job.layers
    )
    common: dict[str, Any] = {
        "output_dir": str(folder / "run"),
        "per_device_train_batch_size": job.batch,
        "max_steps": steps,
        "learning_rate": 1e-5 if how == "full" else 1e-4,
        "beta": 0.1,
        "max_length": 256,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 10,
    }
    return (_ours if who == "tokenq" else _theirs)(
        job, model, tokenizer, common, how == "lora", folder
    )


def _adapter() -> Any:
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM", r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules="all-linear"
    )


def _ours(
    job: Job, model: Any, tokenizer: Any, common: dict[str, Any], lora: bool, folder: Path
) -> Any:
    from tokenq.data import Rows
    from tokenq.training import PreferenceConfig, PreferenceTrainer

    def numbered(texts: Any, name: str) -> Rows:
        kept = texts.add_column("row", list(range(len(texts))))
        return Rows(kept, "preference", name, kept._fingerprint, 0)

    return PreferenceTrainer(
        model,
        args=PreferenceConfig(
            **common, monitor=False, reference_cache_dir=str(folder / "reference")
        ),
        train_dataset=numbered(job.train, "train"),
        eval_dataset=numbered(job.held_out, "test"),
        processing_class=tokenizer,
        peft_config=_adapter() if lora else None,
    )


def _theirs(
    job: Job, model: Any, tokenizer: Any, common: dict[str, Any], lora: bool, folder: Path
) -> Any:
    from trl import DPOConfig, DPOTrainer

    return DPOTrainer(
        model,
        args=DPOConfig(**common, precompute_ref_log_probs=True),
        train_dataset=job.train,
        eval_dataset=job.held_out,
        processing_class=tokenizer,
        peft_config=_adapter() if lora else None,
    )


def run(arm: str, job: Job, steps: int, monitor: Timed | None) -> dict[str, float]:
    """Train; returns wall and processor seconds of `train()`, and of the monitor's hooks in it."""
    with tempfile.TemporaryDirectory() as name:
        trainer = trainer_of(arm, job, steps, Path(name))
        if monitor is not None:
            monitor.attach(trainer)
        seconds, processor = time.perf_counter(), time.process_time()
        trainer.train()
        found = {
            "seconds": time.perf_counter() - seconds,
            "processor": time.process_time() - processor,
        }
        if monitor is not None:
            found |= {"hooks": monitor.hooks.seconds, "hooks_processor": monitor.hooks.processor}
            folder = Path(name) / "run" / "monitor"
            if (folder / "summary.json").exists():
                found |= _counted(folder)
        return found


def _counted(folder: Path) -> dict[str, Any]:
    """What the monitor says of itself."""
    summary = json.loads((folder / "summary.json").read_text())
    history = MonitorFolder(folder).history()
    assert history.setup is not None
    return {
        "counted": summary["monitor_seconds"],
        "readings": [reading.step for reading in history.readings],
        "with_samples": [r.step for r in history.readings if r.samples is not None],
        "reading_seconds": [reading.seconds for reading in history.readings],
        "opening_seconds": history.setup.facts["opening_seconds"],
        "options": history.setup.facts["options"],
    }


def clock(arm: str, job: Job, rounds: int) -> dict[str, Any]:
    """Short runs with and without, alternated: is the time that hooks take all that it costs?"""
    taken: list[dict[str, Any]] = []
    for number in range(rounds):
        order = (False, True) if number % 2 == 0 else (True, False)
        found = {
            watched: run(
                arm, job, CLOCK_STEPS,
                Timed(options=CLOCK_OPTIONS, steps=CLOCK_EVERY) if watched else None,
            )
            for watched in order
        }  # fmt: skip
        taken.append({"without": found[False], "with": found[True]})
        print(f"  {arm} round {number}: {taken[-1]}", flush=True)
    extra = [each["with"]["processor"] - each["without"]["processor"] for each in taken]
    hooks = [each["with"]["hooks_processor"] for each in taken]
    return {
        "without_processor": spread([each["without"]["processor"] for each in taken]),
        "extra_processor": spread(extra),
        "hooks_processor": spread(hooks),
        "missed": spread(
            [
                (more - counted) / each["without"]["processor"]
                for more, counted, each in zip(extra, hooks, taken, strict=True)
            ]
        ),
        "raw": taken,
    }


def budget(arm: str, job: Job, steps: int, share: float) -> dict[str, Any]:
    """One run with the default probe and a budget, and what of it the monitor's hooks took."""
    found = run(arm, job, steps, Timed(budget=share))
    return {
        **found,
        "budget": share,
        "steps": steps,
        "batch": job.batch,
        "overhead": found["hooks"] / (found["seconds"] - found["hooks"]),
        "overhead_processor": found["hooks_processor"]
        / (found["processor"] - found["hooks_processor"]),
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def page(results: dict[str, Any]) -> str:
    """The result as a short Markdown page."""
    machine = results["machine"]
    lines = [
        "# What the monitor costs",
        "",
        f"On {machine['processor']}, {machine['threads']} thread, {machine['date']}; torch "
        f"{machine['versions']['torch']}, transformers {machine['versions']['transformers']}, trl "
        f"{machine['versions']['trl']}. Film review pairs, SmolLM2-135M (Q4_1 de-quantised), fp32, "
        "fused AdamW; LoRA of rank 16 on all linear layers. The machine was shared: processor time "
        "is the steadier clock, and both are given.",
        "",
        *(f"* `{command}`" for command in sorted(results["commands"].values())),
        "",
    ]
    if results["budget"]:
        lines += [
            f"## A run within its budget (by default {TARGET:.0%})",
            "",
            "The overhead is what all hooks of the monitor took (set-up, probes, journal, "
            "findings, report) over the time of the rest of `train()`.",
            "",
            "| trainer | budget | layers | steps x pairs | training, s | set-up, s | readings "
            "(with samples) | pairs held out + trained, responses | a reading, s "
            "| overhead, wall | overhead, processor |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [_budget_line(arm, row) for arm, row in results["budget"].items()]
        lines.append("")
    if results["clock"]:
        lines += [
            "## Do the hooks' times miss anything?",
            "",
            f"Runs of {CLOCK_STEPS} steps of {CLOCK_BATCH} pairs with a probe every {CLOCK_EVERY} "
            f"steps ({CLOCK_OPTIONS.held_out} + {CLOCK_OPTIONS.trained} pairs, "
            f"{CLOCK_OPTIONS.responses} responses) and without, alternated: far above the budget, "
            "so that the difference stands out. Processor seconds, medians, least and greatest in "
            "brackets. `missed`: what a run takes longer than its hooks say, as a share of the run "
            "without.",
            "",
            "| trainer | layers | run without | longer with the monitor | its hooks | missed |",
            "|---|---|---|---|---|---|",
        ]
        for arm, row in results["clock"].items():
            cells = [
                _spread(row[name], ".1f")
                for name in ("without_processor", "extra_processor", "hooks_processor")
            ]
            cells.append(_spread(row["missed"], ".1%"))
            lines.append(f"| {arm} | {row['layers']} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _budget_line(arm: str, row: dict[str, Any]) -> str:
    training = row["seconds"] - row["hooks"]
    cells = [
        arm,
        f"{row['budget']:.0%}",
        str(row["layers"]),
        f"{row['steps']} x {row['batch']}",
        f"{training:.0f}",
    ]
    if "readings" in row:
        options = row["options"]
        cells += [
            f"{row['opening_seconds']:.1f}",
            f"{len(row['readings'])} ({len(row['with_samples'])})",
            f"{options['held_out']} + {options['trained']}, {options['responses']}",
            f"{statistics.median(row['reading_seconds']):.2f}",
        ]
    else:
        cells += ["", "none: too short", "", ""]
    cells += [f"{row['overhead']:.2%}", f"{row['overhead_processor']:.2%}"]
    return f"| {' | '.join(cells)} |"


def _spread(row: dict[str, float], form: str) -> str:
    return f"{row['median']:{form}} [{row['min']:{form}}, {row['max']:{form}}]"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("clock", "budget", "page"))
    parser.add_argument("--arms", nargs="*", default=ARMS, choices=ARMS)
    parser.add_argument("--rounds", type=int, default=3, help="of the clock")
    parser.add_argument("--layers", type=int, default=30, help="of the model that are kept")
    parser.add_argument("--pairs", type=int, default=2400, help="that a budget run trains on")
    parser.add_argument("--budget", type=float, default=TARGET, help="share of training time")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("results/monitor"))
    args = parser.parse_args()

    from tokenq.models.bundled import materialise

    torch.set_num_threads(args.threads)
    file = args.out / "results.json"
    results: dict[str, Any] = {"clock": {}, "budget": {}, "commands": {}}
    if file.exists():
        results = json.loads(file.read_text())
    results["machine"] = describe(args.threads)
    model = materialise("smollm2-135m-instruct")
    pairs = CLOCK_STEPS * CLOCK_BATCH if args.part == "clock" else args.pairs
    command = "python -m " + " ".join(["benchmarks.monitor", *sys.argv[1:]])
    for arm in args.arms if args.part != "page" else ():
        train, held_out = rows(pairs, HELD_OUT)
        batch = CLOCK_BATCH if args.part == "clock" else BATCH
        job = Job(model, args.layers, train, held_out, batch)
        if args.part == "clock":
            found = clock(arm, job, args.rounds)
        else:
            found = budget(arm, job, len(train) // batch, args.budget)
        results[args.part][arm] = {**found, "layers": args.layers}
        results["commands"][f"{args.part} {arm}"] = command
        write_text(file, json.dumps(results, indent=1) + "\n")
    write_text(args.out / "README.md", page(results))
    print(page(results))


if __name__ == "__main__":
    main()
