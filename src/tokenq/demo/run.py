"""The stages of the demonstration, each of which a later run finds done."""

import shlex
from itertools import islice
from pathlib import Path

from rich.console import Console

from tokenq.credit.dataset import CreditOptions, CreditRun, credit_dataset
from tokenq.demo.figure import draw
from tokenq.demo.material import Material, answers, gather
from tokenq.demo.results import Results, measure, write_results
from tokenq.demo.search import search_and_judge, show_written
from tokenq.demo.settings import MODEL, DemoSettings, claim
from tokenq.demo.show import show
from tokenq.demo.timing import Clock
from tokenq.models import Pair, load_pair, materialise
from tokenq.report.html import PageHead, write_page
from tokenq.report.progress import progress_bar
from tokenq.report.terminal import show_rows
from tokenq.training.arguments import DataArguments, ModelArguments, RunArguments
from tokenq.training.config import PreferenceConfig
from tokenq.training.preflight import check_writable
from tokenq.training.run import run as train

STAGES = 6
SHOWN_ROWS = 3
_ALTERNATIVES, _MIN_PROBABILITY = 3, 0.01


def run_demo(settings: DemoSettings, out: Path, console: Console) -> Results:
    """Run all stages; what an earlier run with the same settings finished in `out` is used.

    Leaves `index.html` (the page), `figure.png`, `summary.json`, `words.jsonl`, `written.jsonl`,
    `credit/` (tokens), `model/` (the adapter), `train.jsonl` and `held_out.jsonl`.

    Raises UserError if `out` holds a run with other settings, or data or model cannot be had.
    """
    check_writable(out)
    claim(out, settings)
    clock = Clock(out / "timings.json", console, STAGES)
    with clock.stage("Model and data"), console.status("Fetching, converting, pairing"):
        materialise(MODEL.removeprefix("bundled:"))
        material = gather(out, settings)
    _introduce(console, settings, material)
    with clock.stage("Training: LoRA, DPO"):
        adapter = train_adapter(settings, material, out / "model")
    with clock.stage("Reading: every token of the held-out pairs"):
        pair = load_pair(adapter, MODEL)
        read = _read(pair, material, out / "credit", settings, console)
    with clock.stage("Measuring: pairs and words, beside controls"), console.status("Resampling"):
        results = measure(list(read.records()), material, settings)
    with clock.stage("Searching: sentences written on"), console.status("Searching"):
        written = search_and_judge(pair, material, settings, out / "written.jsonl")
    with clock.stage("Page and figure"):
        _write_page(out / "index.html", read, material)
        draw(out / "figure.png", results)
    write_results(out, results, read, written, material, settings, clock)
    console.rule("[bold]What it learned", align="left")
    show_rows(console, islice(read.records(), SHOWN_ROWS), settings.beta)
    console.print(f"(the first {SHOWN_ROWS} test pairs, not chosen ones)", style="dim")
    show(console, results)
    console.print()
    show_written(console, written)
    return results


def train_adapter(settings: DemoSettings, material: Material, folder: Path) -> Path:
    """Train, or go on from the last checkpoint, or find it done; returns the adapter's folder."""
    if (folder / "train_results.json").is_file():
        return folder
    steps = -(-settings.pairs // settings.batch_size)
    config = PreferenceConfig(
        output_dir=str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, steps // 10),
        beta=settings.beta,
        token_budget=settings.token_budget,
        seed=settings.seed,
        logging_steps=4,
        save_steps=10,
        save_total_limit=1,
        report_to="none",
        monitor=False,  # so few pairs leave no time for it within its budget
    )
    model = ModelArguments(
        model_name_or_path=MODEL,
        use_peft=True,
        lora_r=settings.lora_r,
        lora_alpha=2 * settings.lora_r,
    )
    data = DataArguments(dataset_name=material.train.source)
    command = shlex.join(["tokenq", "demo", "--out", str(folder.parent)])
    train(model, data, config, RunArguments(), command)
    return folder


def _introduce(console: Console, settings: DemoSettings, material: Material) -> None:
    first = material.train.dataset[0]
    chosen, rejected = answers(first)
    console.print(
        f"{settings.pairs} training pairs of film review sentences, rated by about 18 people each; "
        f"{settings.held_out} test pairs of other sentences. For example:"
    )
    console.print(f"  better: {chosen}\n  worse:  {rejected}", style="dim", markup=False)


def _read(
    pair: Pair, material: Material, folder: Path, settings: DemoSettings, console: Console
) -> CreditRun:
    options = CreditOptions(
        beta=settings.beta,
        alternatives=_ALTERNATIVES,
        min_probability=_MIN_PROBABILITY,
        token_budget=settings.token_budget,
    )
    with progress_bar("Scoring pairs", console) as progress:
        task = progress.add_task("", total=settings.held_out)
        return credit_dataset(
            pair,
            material.held_out,
            folder,
            options,
            on_progress=lambda count: progress.advance(task, count),
        )


def _write_page(path: Path, read: CreditRun, material: Material) -> None:
    summary = read.summary
    head = PageHead(
        policy="the adapter in model/",
        reference=MODEL,
        beta=read.settings["beta"],
        data="film reviews, test split",
        accuracy=summary.accuracy,
        mean_margin=summary.margins.value,
        ordered=summary.margins.count,
        rows=summary.rows,
        tokens=summary.tokens,
        skipped=sum(summary.skipped.values()),
        min_probability=_MIN_PROBABILITY,
    )
    write_page(path, read.records(), head)
