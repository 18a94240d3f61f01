"""`tokenq judge`: how often one model's responses are better than another's."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tokenq.cli.arguments import CommandParser
from tokenq.errors import UserError
from tokenq.report.progress import progress_bar
from tokenq.storage import check_writable, write_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tokenq.judges.comparisons import Comparison
    from tokenq.judges.length_control import LengthControl
    from tokenq.judges.responses import Responses
    from tokenq.judges.running import Judged
    from tokenq.judges.specs import NamedJudge
    from tokenq.judges.summary import JudgeReport
    from tokenq.judges.wins import WinRate

_FEW = 0.05
"""Share of comparisons below which a side that is longer, or shorter, was hardly seen."""


def main(argv: list[str]) -> int:
    """Run the command."""
    arguments = _parser().parse_args(argv)
    judges = _judges(arguments)
    console = Console(highlight=False)

    from tokenq.judges.journal import VerdictJournal
    from tokenq.judges.responses import pair_up, read_responses
    from tokenq.judges.running import right_answers, run_judges
    from tokenq.judges.specs import Resources

    ours, theirs = (
        read_responses(
            source,
            chat=arguments.chat,
            first_only=arguments.first_only,
            split=arguments.split,
            config=arguments.config,
        )
        for source in (arguments.responses, arguments.baseline)
    )
    comparisons = pair_up(ours, theirs, matched_only=arguments.matched_only)
    models = {name: getattr(arguments, name) for name in ("device", "dtype", "token_budget")}
    given = [
        (named, Resources(right_answers(named, comparisons, ours, theirs), **models))
        for named in judges
    ]
    check_writable(arguments.out, "--out")
    settings = _settings(arguments, ours, theirs)
    with (
        VerdictJournal(arguments.out, settings) as journal,
        progress_bar("Judging", console) as progress,
    ):
        task = progress.add_task("", total=len(judges) * len(comparisons))
        judged = run_judges(
            given,
            comparisons,
            journal,
            seed=arguments.seed,
            both_orders=arguments.both_orders,
            on_judge=lambda name, known: progress.advance(task, known),
            on_verdict=lambda: progress.advance(task),
        )
    _write(arguments.out, settings, comparisons, judged)
    _show(console, comparisons, judged)
    console.print(f"written: {arguments.out}", markup=False, soft_wrap=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    from tokenq.judges.specs import KINDS

    parser = CommandParser(
        "judge",
        "Tell how often one model's responses are better than a baseline's to the same prompts, by "
        "one or more judges, with intervals, ties counted half, and at equal length.",
    )
    data = parser.add_argument_group(
        "responses: rows of a prompt (or instruction) with a response, output, completion, or a "
        "list of responses"
    )
    data.add_argument("--responses", required=True, help="ours: .jsonl, .json, .csv, .parquet, ...")
    data.add_argument("--baseline", required=True, help="theirs, to the same prompts")
    data.add_argument("--split", default="test", help="split of a folder or hub set")
    data.add_argument("--config", help="configuration of a hub set")
    data.add_argument(
        "--chat", action="store_true", help="text prompts are what a user says in a chat"
    )
    data.add_argument(
        "--first_only",
        "--first-only",
        action="store_true",
        help="of several responses to a prompt, the first",
    )
    data.add_argument(
        "--matched_only",
        "--matched-only",
        action="store_true",
        help="leave out prompts that only one side has",
    )
    data.add_argument(
        "--out", type=Path, required=True, help="folder for summary.json and verdicts.jsonl"
    )
    judging = parser.add_argument_group("judging")
    listed = "; ".join(f"{kind.written}: {kind.about}" for kind in KINDS.values())
    judging.add_argument(
        "--judge",
        action="append",
        required=True,
        metavar="JUDGE",
        help=f"who judges; several times for several. {listed}. Options follow a question mark: "
        "'reward:MODEL?tie=0.1', 'endpoint:MODEL?base_url=http://localhost:8000/v1'",
    )
    judging.add_argument(
        "--both_orders",
        "--both-orders",
        action="store_true",
        help="ask an endpoint twice, each response first once; answers that differ are a tie",
    )
    judging.add_argument(
        "--seed", type=int, default=0, help="of the order that an endpoint sees, and the bootstrap"
    )
    judging.add_argument("--device", default="auto", help="of models: auto, cpu, cuda, cuda:0")
    judging.add_argument(
        "--dtype", default="auto", help="of models: auto, float32, bfloat16, float16"
    )
    judging.add_argument(
        "--token_budget", type=int, default=4096, help="input tokens of one forward; bounds memory"
    )
    return parser


def _judges(arguments: argparse.Namespace) -> list["NamedJudge"]:
    """Raise UserError for options out of range and judges that cannot be, before rows are read."""
    from tokenq.judges.specs import parse_judge

    if arguments.token_budget < 1:
        raise UserError(f"--token_budget is {arguments.token_budget}; accepted: 1 or more")
    if arguments.seed < 0:
        raise UserError(f"--seed is {arguments.seed}; accepted: 0 or more")
    judges = [parse_judge(text) for text in arguments.judge]
    names = [each.name for each in judges]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise UserError(f"--judge names {repeated.pop()} twice; accepted: each judge once")
    return judges


def _settings(
    arguments: argparse.Namespace, ours: "Responses", theirs: "Responses"
) -> dict[str, Any]:
    """What decides the comparisons and how they are asked."""
    return {
        "responses": {"source": ours.source, "fingerprint": ours.fingerprint},
        "baseline": {"source": theirs.source, "fingerprint": theirs.fingerprint},
        **{
            name: getattr(arguments, name)
            for name in ("chat", "first_only", "matched_only", "both_orders", "seed")
        },
    }


def _write(
    out: Path,
    settings: dict[str, Any],
    comparisons: "Sequence[Comparison]",
    judged: "Mapping[str, Judged]",
) -> None:
    from dataclasses import asdict

    from tokenq import __version__
    from tokenq.judges.running import agreements

    count = len(comparisons)
    summary = {
        **settings,
        "tokenq": __version__,
        "prompts": len({each.key for each in comparisons}),
        "comparisons": count,
        "identical": sum(each.ours == each.theirs for each in comparisons),
        "characters": {
            "ours": sum(len(each.ours) for each in comparisons) / count,
            "theirs": sum(len(each.theirs) for each in comparisons) / count,
        },
        "judges": {
            name: {"identity": each.identity, **each.report.to_dict()}
            for name, each in judged.items()
        },
        "agreement": [
            {"judges": [one, other], **({} if found is None else asdict(found))}
            for one, other, found in agreements(judged)
        ],
    }
    write_text(out / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")


def _show(
    console: Console, comparisons: "Sequence[Comparison]", judged: "Mapping[str, Judged]"
) -> None:
    from tokenq.judges.running import agreements

    table = Table(box=None, pad_edge=False)
    table.add_column("judge", overflow="fold")
    for name in ("win rate", "95 %", "at equal length", "95 %", "ties"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, each in judged.items():
        rate, control = each.report.win_rate, each.report.length_controlled
        ties = "" if rate is None else str(rate.ties)
        table.add_row(Text(name), *_cells(rate), *_cells(control), ties)
    console.print(table)
    prompts = len({each.key for each in comparisons})
    console.print(f"{len(comparisons)} comparisons of {prompts} prompts; ties count half")
    for name, each in judged.items():
        for note in _notes(each.report):
            console.print(Text(f"{name}: {note}"), soft_wrap=True)
    for one, other, found in agreements(judged):
        if found is not None:
            kappa = "" if found.kappa is None else f", kappa {found.kappa:+.2f}"
            told = f"{one} and {other} agree on {100 * found.same:.1f} % of {found.comparisons}"
            console.print(Text(told + kappa), soft_wrap=True)


def _cells(found: "WinRate | LengthControl | None") -> tuple[str, str]:
    if found is None:
        return "", ""
    return f"{found.value:.3f}", f"{found.low:.3f} to {found.high:.3f}"


def _notes(report: "JudgeReport") -> list[str]:
    """What to know before believing the numbers of one judge."""
    notes = []
    if report.unreadable:
        notes.append(f"{report.unreadable} answers could not be read and are left out")
    if report.position is not None:
        first = report.position.first
        notes.append(
            f"prefers what is shown first in {100 * first.value:.1f} % "
            f"({100 * first.low:.1f} to {100 * first.high:.1f}) of {first.count} answers"
        )
        if report.position.inconsistent is not None:
            share = 100 * report.position.inconsistent
            notes.append(f"{share:.1f} % of comparisons were decided by the order, and are ties")
    control = report.length_controlled
    if report.win_rate is not None and control is None:
        notes.append("all lengths differ by the same, so that length cannot be told from quality")
    elif control is not None and control.spread and min(control.longer, control.shorter) < _FEW:
        notes.append(
            f"ours is longer in {100 * control.longer:.0f} % and shorter in "
            f"{100 * control.shorter:.0f} %: the rate at equal length is an extrapolation"
        )
    return notes
