"""`tokenq monitor`: what a run did to the likelihoods, live, afterwards, or from its logs alone."""

import argparse
import csv
import io
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tokenq.cli.arguments import CommandParser
from tokenq.errors import UserError
from tokenq.report.progress import progress_bar
from tokenq.storage import check_writable, write_text

if TYPE_CHECKING:
    from tokenq.monitor.probing import ProbeOptions
    from tokenq.monitor.readings import History
    from tokenq.monitor.replay import Replayed
    from tokenq.monitor.watched import PairRows

_FOLDER = "monitor"
_PROBE = ("held_out", "trained", "responses", "samples", "new_tokens", "seed")
_REPLAY = ("train_data", "reference", "beta", "max_length", *_PROBE)


def main(argv: list[str]) -> int:
    """Run the command."""
    arguments = _parser().parse_args(argv)
    _check(arguments)
    out = arguments.out or _default_out(arguments.run)
    console = Console(highlight=False)
    if arguments.data is not None:
        history = _replayed(arguments, out, console)
    elif arguments.follow:
        history = _followed(arguments, console)
    else:
        history = _known(arguments.run)
        _check_apart(history, out)
    check_writable(out, "--out")
    from tokenq.report.monitor_terminal import show_run

    if not arguments.follow or console.is_terminal:
        show_run(console, history)
    worst = _write(history, arguments, out)
    console.print(f"\npage: {out / 'report.html'}", markup=False, soft_wrap=True)
    return int(worst >= _level(arguments.fail_on)) if arguments.fail_on else 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "monitor",
        "Say what a run of preference training did to the likelihoods: whether a negative chosen "
        "reward is expected or harmful, what goes wrong since which step, and what to change.",
    )
    parser.add_argument(
        "run",
        type=Path,
        metavar="RUN",
        help="a run's folder (ours or TRL's, going on or finished), a checkpoint, or a file of "
        "logs: trainer_state.json, .jsonl, .json, .csv, tensorboard events",
    )
    shown = parser.add_argument_group("what is written and shown")
    shown.add_argument(
        "--out",
        type=Path,
        help="folder for report.html, summary.json, findings.json and measures.csv (RUN/monitor)",
    )
    shown.add_argument("--figures", action="store_true", help="also OUT/figures/*.png")
    shown.add_argument("--tokenizer", help="for tokens as text; by default the run's own")
    shown.add_argument(
        "--follow", action="store_true", help="show a run that goes on, until it ends or Ctrl-C"
    )
    shown.add_argument(
        "--interval", type=float, default=2.0, help="seconds between looks at a run that goes on"
    )
    shown.add_argument(
        "--fail_on",
        choices=("alarm", "warning"),
        help="exit with 1 where there is a finding of this severity, or a worse one",
    )
    replay = parser.add_argument_group(
        "measuring checkpoints afterwards: every checkpoint-N of RUN that was not measured yet"
    )
    replay.add_argument("--data", help="preference pairs that training did not see, or held out")
    replay.add_argument("--train_data", help="preference pairs that training saw")
    replay.add_argument("--split", default="train", help="split of folders, hub or bundled sets")
    replay.add_argument(
        "--reference", help="what rewards are measured against; by default as the run tells"
    )
    replay.add_argument(
        "--beta", type=float, help="the KL penalty of the training; by default as the run tells"
    )
    replay.add_argument(
        "--max_length",
        type=int,
        help="most tokens of prompt and answer; by default as the run tells",
    )
    replay.add_argument("--held_out", type=int, help="pairs of --data (32)")
    replay.add_argument("--trained", type=int, help="pairs of --train_data (32)")
    replay.add_argument("--responses", type=int, help="responses that the reference writes (32)")
    replay.add_argument("--samples", type=int, help="responses of each checkpoint (16)")
    replay.add_argument(
        "--new_tokens", type=int, help="most tokens of a response (by the length of the answers)"
    )
    replay.add_argument("--seed", type=int, help="of the draw of pairs and responses (0)")
    replay.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:0")
    replay.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, float16")
    replay.add_argument(
        "--token_budget", type=int, default=4096, help="input tokens of one forward; bounds memory"
    )
    return parser


def _check(arguments: argparse.Namespace) -> None:
    """Raise UserError for what can be known to be wrong before anything is imported."""
    if not arguments.run.exists():
        raise UserError(
            f"{arguments.run} does not exist; accepted: a run's folder, a checkpoint, or a file of "
            "logs"
        )
    if arguments.out is not None and arguments.out.exists() and not arguments.out.is_dir():
        raise UserError(f"--out: {arguments.out} is a file; accepted: a folder")
    if not arguments.interval > 0:
        raise UserError(f"--interval is {arguments.interval}; accepted: seconds above 0")
    if arguments.beta is not None and not arguments.beta > 0:
        raise UserError(f"--beta is {arguments.beta}; accepted: a number above 0")
    for name, least in (("max_length", 2), ("token_budget", 1)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise UserError(f"--{name} is {value}; accepted: {least} or more")
    if arguments.data is None:
        for name in _REPLAY:
            if getattr(arguments, name) is not None:
                raise UserError(
                    f"--{name} is of use where checkpoints are measured; accepted: with --data"
                )
    elif arguments.follow:
        raise UserError("--follow looks at a run that goes on; accepted: it, or --data")
    if arguments.follow and arguments.run.is_file():
        raise UserError(f"--follow: {arguments.run} is a file; accepted: a run's folder")


def _default_out(run: Path) -> Path:
    """RUN/monitor; RUN itself where it is that folder."""
    from tokenq.monitor.journal import MonitorFolder

    folder = run if run.is_dir() else run.parent
    return folder if MonitorFolder(folder).exists() else folder / _FOLDER


def _check_apart(history: "History", out: Path) -> None:
    """Raise UserError where the report of mere logs would take the place of a watched run's."""
    if history.setup is None and (out / "setup.json").exists():
        raise UserError(
            f"{out} holds what a monitor read of this run; accepted: the run's folder instead of a "
            "file of its logs, or another --out"
        )


def _known(run: Path) -> "History":
    from tokenq.monitor.logs import run_history

    return run_history(run)


# ---- A run that goes on --------------------------------------------------------------------------


def _followed(arguments: argparse.Namespace, console: Console) -> "History":
    """Show the run whenever its files have grown; returns what is known when it has ended."""
    from tokenq.monitor.journal import MonitorFolder

    folder = MonitorFolder.of(arguments.run)
    if not folder.exists() and MonitorFolder(arguments.run).exists():
        folder = MonitorFolder(arguments.run)
    if not folder.exists():
        console.print(f"waiting for {folder.root}", markup=False, soft_wrap=True)
    show = _live if console.is_terminal else _lines
    try:
        show(folder.root, console, arguments.interval)
    except KeyboardInterrupt:
        console.print("no longer following")
    return _known(arguments.run)


def _live(root: Path, console: Console, interval: float) -> None:
    from rich.live import Live
    from rich.text import Text

    from tokenq.monitor.journal import MonitorFolder
    from tokenq.report.monitor_terminal import monitor_view

    with Live(Text(), console=console, auto_refresh=False, transient=True) as live:

        def show() -> None:
            history = MonitorFolder(root).history()
            live.update(monitor_view(history, console.width), refresh=True)

        _watch(root, interval, show)


def _lines(root: Path, console: Console, interval: float) -> None:
    from tokenq.monitor.journal import MonitorFolder
    from tokenq.monitor.readings import History
    from tokenq.report.monitor_terminal import news

    seen: History | None = None

    def show() -> None:
        nonlocal seen
        now = MonitorFolder(root).history()
        for line in news(seen, now):
            console.print(line, soft_wrap=True)
        seen = now

    _watch(root, interval, show)


def _watch(root: Path, interval: float, show: Callable[[], None]) -> None:
    """Call `show` whenever the files have changed, until the run says that it has ended."""
    before: list[tuple[int, int]] | None = None
    while True:
        ended = _ended(root)
        paths = [root / name for name in ("setup.json", "readings.jsonl", "logs.jsonl")]
        now = [(path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path.exists()]
        if now and now != before:
            show()
            before = now
        if ended:
            return
        time.sleep(interval)


def _ended(root: Path) -> bool:
    return bool(_earlier(root).get("ended"))


def _earlier(root: Path) -> dict[str, Any]:
    """The summary that is there, or nothing."""
    path = root / "summary.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


# ---- Checkpoints that nobody watched -------------------------------------------------------------


def _replayed(arguments: argparse.Namespace, out: Path, console: Console) -> "History":
    from dataclasses import replace

    from tokenq.monitor.journal import MonitorFolder
    from tokenq.monitor.logs import run_history
    from tokenq.monitor.replay import replay

    options = _options(arguments)
    run = _opened(arguments, out, console)
    with MonitorFolder(out) as folder, progress_bar("Measuring checkpoints", console) as progress:
        task = progress.add_task("", total=len(run.checkpoints) + 1)
        history = replay(
            folder,
            run,
            options,
            device=arguments.device,
            dtype=arguments.dtype,
            on_progress=lambda step: progress.advance(task),
        )
    try:
        return replace(history, logs=run_history(arguments.run).logs)
    except UserError:
        return history  # a folder may hold checkpoints and no logs


def _options(arguments: argparse.Namespace) -> "ProbeOptions":
    from tokenq.monitor.probing import ProbeOptions

    given = {name: getattr(arguments, name) for name in _PROBE}
    return ProbeOptions(
        **{name: value for name, value in given.items() if value is not None},
        token_budget=arguments.token_budget,
    )


def _opened(arguments: argparse.Namespace, out: Path, console: Console) -> "Replayed":
    """What is to be replayed, with every check that small files allow before a model is loaded."""
    from tokenq.models.checkpoint import inspect
    from tokenq.models.loading import load_policy, load_tokenizer
    from tokenq.models.vocabulary import check_same_vocabulary
    from tokenq.monitor.replay import Replayed, checkpoints_of, facts_of

    checkpoints = checkpoints_of(arguments.run)
    facts = facts_of(arguments.run, checkpoints)
    name = arguments.reference or facts.reference
    if name is None:
        raise UserError(
            f"{arguments.run} does not tell its reference; accepted: --reference, what its "
            "training started from"
        )
    beta = arguments.beta or facts.beta or _default_beta(facts.objectives)
    if beta is None:
        raise UserError(
            f"{arguments.run} does not tell its beta; accepted: --beta, the KL penalty of its "
            "training (TRL's default is 0.1)"
        )
    last, named = inspect(checkpoints[-1][1]), inspect(name)
    tokenizer = load_tokenizer(arguments.tokenizer or (last if last.has_tokenizer() else named))
    if named.has_tokenizer():
        check_same_vocabulary(tokenizer, load_tokenizer(named), last.name, named.name)
    max_length = arguments.max_length or facts.max_length
    cut = (tokenizer, max_length, facts.truncation_mode)
    held_out = _rows(arguments.data, arguments.split, *cut)
    trained = arguments.train_data and _rows(arguments.train_data, arguments.split, *cut)
    check_writable(out, "--out")
    with console.status("Loading the reference"):
        reference = load_policy(named, device=arguments.device, dtype=arguments.dtype)
    reference.requires_grad_(False)
    return Replayed(checkpoints, reference, name, tokenizer, held_out, trained, beta)


def _default_beta(objectives: Sequence[str]) -> float | None:
    """What the first objective that has a beta trains with where none is set."""
    from tokenq.objectives import OBJECTIVES

    for name in objectives:
        default = getattr(OBJECTIVES.get(name), "beta", None)
        if isinstance(default, float):
            return default
    return None


def _rows(
    source: str, split: str, tokenizer: Any, max_length: int | None, truncation_mode: str
) -> "PairRows":
    from tokenq.data import load_rows
    from tokenq.monitor.watched import PairRows

    rows = load_rows(source, split=split)
    if rows.kind != "preference":
        raise UserError(
            f"{source}: its rows are of kind '{rows.kind}'; accepted: preference pairs (prompt, "
            "chosen, rejected)"
        )
    return PairRows.of(rows, source, tokenizer, max_length, truncation_mode)


# ---- Files ---------------------------------------------------------------------------------------


def _write(history: "History", arguments: argparse.Namespace, out: Path) -> int:
    """Write all files; returns the severity of the worst finding, -1 for none."""
    from tokenq.monitor.summary import write_summary
    from tokenq.report.monitor_page import write_monitor_page

    if arguments.figures:
        from tokenq.report.monitor_figures import write_figures

        write_figures(out / "figures", history)
    write_text(out / "measures.csv", _table(history))
    write_monitor_page(
        out / "report.html",
        history,
        tokenizer=_tokenizer(arguments, history) if history.readings else None,
    )
    before = _earlier(out)
    # Only a run that is watched goes on after this; the monitor says when it has ended.
    watched = history.setup is not None and arguments.data is None
    ended = bool(before.get("ended")) if watched else True
    # At its end the monitor counts its setting up and its page as well, which readings do not tell.
    spent = before.get("monitor_seconds") if watched and ended else None
    summary = write_summary(out, history, ended=ended, monitor_seconds=spent)
    return max((_level(each["severity"]) for each in summary["findings"]), default=-1)


def _level(severity: str) -> int:
    from tokenq.monitor.findings.finding import SEVERITIES

    return list(SEVERITIES).index(severity)  # type: ignore[arg-type]


def _table(history: "History") -> str:
    """One line for each measure and step."""
    from tokenq.monitor.measures import MEASURES
    from tokenq.monitor.summary import values

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("step", "measure", "mean", "low", "high", "unit"))
    for name, points in values(history).items():
        unit = MEASURES[name].unit if name in MEASURES else ""
        for step, each in points:
            writer.writerow((step, name, each.mean, each.low, each.high, unit))
    return text.getvalue()


def _tokenizer(arguments: argparse.Namespace, history: "History") -> Any:
    """The one named, or the one beside the run's weights, or of its policy; None: there is none."""
    from tokenq.models.loading import load_tokenizer
    from tokenq.monitor.replay import checkpoints_of

    if arguments.tokenizer is not None:
        return load_tokenizer(arguments.tokenizer)
    folder = arguments.run if arguments.run.is_dir() else arguments.run.parent
    for place in (folder, folder.parent):  # RUN/monitor may be given itself
        try:
            return load_tokenizer(checkpoints_of(place)[-1][1])
        except UserError:
            continue
    policy = history.setup.policy if history.setup else ""
    if policy.startswith("bundled:") or Path(policy).is_dir():
        try:
            return load_tokenizer(policy)
        except UserError:
            return None
    return None
