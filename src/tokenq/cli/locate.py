"""`tokenq locate`: error spans in responses, at a stated rate of false alarms."""

import argparse
import heapq
import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tokenq.cli.arguments import CommandParser, check_reference, load_models
from tokenq.cli.scoring import (
    Scored,
    add_scoring_arguments,
    check_scoring,
    read_rows,
    score_with,
)
from tokenq.errors import UserError
from tokenq.storage import atomic_file, check_writable, write_text

if TYPE_CHECKING:
    from tokenq.credit.calibration import SpanCalibration
    from tokenq.credit.dataset import CreditOptions
    from tokenq.credit.locating import LocateOptions, LocateSummary
    from tokenq.data.loading import Rows

_ROWS = "prompts with responses of any kind"
_GOOD = ("good", "good_credit", "calibration")
_FITTING = ("tolerance", "gap", "length_bins", "seed")


def main(argv: list[str]) -> int:
    """Run the command."""
    arguments = _parser().parse_args(argv)
    options, reporting = _check(arguments)
    console = Console(highlight=False)
    calibration = _given_calibration(arguments)
    options = _with_estimator(options, _estimator(arguments, calibration))
    rows = read_rows(arguments, ("preference", "sft", "unpaired", "ranked"), _ROWS)
    good = None if arguments.good is None else _good_rows(arguments)
    calibration, scored = _score(arguments, rows, good, calibration, options, console)
    calibration.save(arguments.out / "calibration.json")
    summary, worst = _write(scored, calibration, reporting, arguments)
    _write_summary(summary, scored, rows, calibration, reporting, arguments)
    _write_page(summary, scored, rows, calibration, reporting, arguments)
    _show(summary, worst, calibration, reporting, arguments, console)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "locate",
        "Find the stretches of responses that a policy blames more, measured against its "
        "reference, than all but a stated share of responses known to be good.",
    )
    add_scoring_arguments(parser, _ROWS)
    good = parser.add_argument_group(
        "good responses: of the same kind as the data, and not what the policy was trained on"
    )
    good.add_argument(
        "--good",
        help="a data set; of pairs the chosen, of labelled responses those that are true, of "
        "rankings the first",
    )
    good.add_argument("--good_split", default="train", help="its split")
    good.add_argument("--good_config", help="its configuration")
    good.add_argument("--good_limit", type=int, help="at most so many of its rows")
    good.add_argument(
        "--good_credit", type=Path, metavar="DIR", help="or what `tokenq credit` wrote for them"
    )
    good.add_argument(
        "--calibration", type=Path, metavar="FILE", help="or the calibration.json of an earlier run"
    )
    finding = parser.add_argument_group("finding")
    finding.add_argument(
        "--rate",
        type=float,
        default=0.05,
        help="share of good responses in which anything may be flagged",
    )
    finding.add_argument(
        "--estimator",
        help="which estimate of token credit is searched: any name of `tokenq credit` (plain)",
    )
    finding.add_argument(
        "--tolerance",
        type=float,
        help="blame granted to each token, nats times beta (by default: the mean absolute blame of "
        "a quarter of the good responses, which then do not calibrate)",
    )
    finding.add_argument(
        "--gap", type=int, help="tokens in a row without blame that a span may bridge (3)"
    )
    finding.add_argument(
        "--length_bins",
        type=int,
        help="judge a response among good ones of like length, in so many bins (1)",
    )
    finding.add_argument(
        "--seed", type=int, help="draws the good responses that the tolerance is taken from (0)"
    )
    finding.add_argument(
        "--candidates",
        type=int,
        default=1,
        help="worst spans of each response that are written although they are not flagged",
    )
    finding.add_argument("--page_rows", type=int, default=2000, help="most rows on the page")
    finding.add_argument("--show", type=int, default=3, help="responses shown in the terminal")
    return parser


def _check(arguments: argparse.Namespace) -> tuple["CreditOptions", "LocateOptions"]:
    """Raise UserError for arguments that do not go together, before anything is read."""
    from tokenq.credit.locating import LocateOptions

    given = [name for name in _GOOD if getattr(arguments, name) is not None]
    if len(given) != 1:
        raise UserError(
            f"{len(given)} of --good, --good_credit, --calibration are given; accepted: one of "
            "them, to know what good responses are like"
        )
    if arguments.credit is not None and arguments.good is not None:
        raise UserError(
            "--good has yet to be scored, --credit is; accepted: --good_credit or --calibration "
            "beside --credit, or the models"
        )
    if arguments.calibration is not None:
        for name in ("estimator", *_FITTING):
            if getattr(arguments, name) is not None:
                raise UserError(f"--{name} is fixed in --calibration; accepted: one of them")
    for name in ("page_rows", "show"):
        if getattr(arguments, name) < 0:
            raise UserError(f"--{name} is {getattr(arguments, name)}; accepted: 0 or more")
    reporting = LocateOptions(rate=arguments.rate, candidates=arguments.candidates)
    if arguments.calibration is None:
        from tokenq.credit.calibration import check_fit

        check_fit(**_fit_options(arguments))
    return check_scoring(arguments), reporting


def _fit_options(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name in _FITTING if (value := getattr(arguments, name)) is not None}


def _estimator(arguments: argparse.Namespace, calibration: "SpanCalibration | None") -> str:
    if calibration is not None:
        return calibration.source.estimator
    return arguments.estimator or "plain"


def _with_estimator(options: "CreditOptions", name: str) -> "CreditOptions":
    """The same options, with the estimator kept in the records; UserError if there is none such."""
    return options if name == "plain" else replace(options, estimators=(name,))


def _given_calibration(arguments: argparse.Namespace) -> "SpanCalibration | None":
    """The calibration for which nothing has to be scored; None with --good."""
    from tokenq.credit.calibration import SpanCalibration
    from tokenq.credit.finished import open_finished
    from tokenq.credit.locating import calibrate_records, source_of_records

    if arguments.calibration is not None:
        calibration = SpanCalibration.load(arguments.calibration)
    elif arguments.good_credit is not None:
        path, settings = open_finished(arguments.good_credit)
        source = source_of_records(settings, _estimator(arguments, None))
        calibration = calibrate_records(path, source, **_fit_options(arguments))
    else:
        return None
    calibration.check_rate(arguments.rate)
    return calibration


def _good_rows(arguments: argparse.Namespace) -> "Rows":
    """The good responses; UserError if there are too few of them for the rate."""
    from tokenq.credit.calibration import check_enough
    from tokenq.credit.locating import better_responses
    from tokenq.data import load_rows

    rows = load_rows(
        arguments.good,
        split=arguments.good_split,
        config=arguments.good_config,
        limit=arguments.good_limit,
        rejects=arguments.out / "good/rejects.jsonl" if arguments.skip_bad_rows else None,
    )
    good = better_responses(rows)
    enough = {
        name: value
        for name, value in _fit_options(arguments).items()
        if name in ("tolerance", "length_bins")
    }
    check_enough(len(good.dataset), arguments.rate, **enough)
    return good


def _score(
    arguments: argparse.Namespace,
    rows: "Rows",
    good: "Rows | None",
    calibration: "SpanCalibration | None",
    options: "CreditOptions",
    console: Console,
) -> tuple["SpanCalibration", Scored]:
    """Score good responses, unless there is a calibration, and then the data, or open its scores.

    A calibration that does not hold for the data or the rate is refused before the data is scored.
    """
    from tokenq.credit.calibration import blame_source
    from tokenq.credit.finished import open_finished
    from tokenq.credit.locating import calibrate_records, source_of_records

    check_writable(arguments.out, "--out")
    if arguments.credit is not None:
        assert calibration is not None
        scored = Scored(*open_finished(arguments.credit, rows))
        estimator = calibration.source.estimator
        calibration.check_source(source_of_records(scored.settings, estimator))
        return calibration, scored
    check_reference(arguments)
    pair = load_models(arguments, console)
    if calibration is None:
        assert good is not None
        found = score_with(pair, good, arguments.out / "good", options, console)
        source = source_of_records(found.settings, _estimator(arguments, None))
        calibration = calibrate_records(found.records, source, **_fit_options(arguments))
        calibration.check_rate(arguments.rate)
    else:
        estimator = calibration.source.estimator
        calibration.check_source(blame_source(pair, options.beta, estimator))
    return calibration, score_with(pair, rows, arguments.out, options, console)


def _located(
    scored: Scored, calibration: "SpanCalibration", reporting: "LocateOptions"
) -> Iterator[dict[str, Any]]:
    from tokenq.credit.journal import read_records
    from tokenq.credit.locating import with_spans

    for record in read_records(scored.records):
        yield with_spans(record, calibration, reporting) if "responses" in record else record


def _write(
    scored: Scored,
    calibration: "SpanCalibration",
    reporting: "LocateOptions",
    arguments: argparse.Namespace,
) -> tuple["LocateSummary", list[tuple[dict[str, Any], str]]]:
    """Write spans.jsonl; returns the counts, and the worst flagged responses with their names."""
    from tokenq.credit.locating import LocateSummary, span_lines

    summary = LocateSummary()
    worst: list[tuple[float, float, int, dict[str, Any], str]] = []
    numbers = count()
    with (
        atomic_file(arguments.out / "spans.jsonl") as path,
        path.open("w", encoding="utf-8") as file,
    ):
        for record in _located(scored, calibration, reporting):
            summary.add(record)
            if "skipped" in record:
                continue
            file.writelines(
                json.dumps(line, ensure_ascii=False) + "\n" for line in span_lines(record)
            )
            for name, side in record["responses"].items():
                top = side["spans"][0] if side["spans"] else {"flagged": False}
                if top["flagged"]:
                    # The first of the heap is the least bad; of equal ones the last row is.
                    bad = (-top["p_value"], top["excess"], -next(numbers))
                    heapq.heappush(worst, (*bad, record, name))
                    if len(worst) > arguments.show:
                        heapq.heappop(worst)
    return summary, [(record, name) for *_, record, name in sorted(worst, reverse=True)]


def _write_summary(
    summary: "LocateSummary",
    scored: Scored,
    rows: "Rows",
    calibration: "SpanCalibration",
    reporting: "LocateOptions",
    arguments: argparse.Namespace,
) -> None:
    report = {
        **scored.settings,
        **summary.to_dict(),
        "rejected": rows.rejected,
        "rate": reporting.rate,
        "candidates": reporting.candidates,
        "calibration": calibration.summary(reporting.rate),
    }
    write_text(arguments.out / "summary.json", json.dumps(report, indent=2) + "\n")


def _write_page(
    summary: "LocateSummary",
    scored: Scored,
    rows: "Rows",
    calibration: "SpanCalibration",
    reporting: "LocateOptions",
    arguments: argparse.Namespace,
) -> None:
    from tokenq.report.html import PageHead, write_page

    source, found = calibration.source, summary.scored
    head = PageHead(
        policy=scored.settings.get("policy") or source.policy or source.policy_hash,
        reference=scored.settings.get("reference") or source.reference or source.reference_hash,
        beta=source.beta,
        data=rows.source,
        accuracy=found.accuracy,
        mean_margin=found.margins.value,
        ordered=found.margins.count,
        rows=found.rows,
        tokens=found.tokens,
        skipped=sum(found.skipped.values()) + rows.rejected,
        format=found.form.to_dict(),
    )
    records = (each for each in _located(scored, calibration, reporting) if "responses" in each)
    write_page(arguments.out / "index.html", records, head, page_rows=arguments.page_rows)


def _show(
    summary: "LocateSummary",
    worst: list[tuple[dict[str, Any], str]],
    calibration: "SpanCalibration",
    reporting: "LocateOptions",
    arguments: argparse.Namespace,
    console: Console,
) -> None:
    from tokenq.report.spans import show_spans

    for record, name in worst:
        show_spans(console, record, name)
    known = calibration.summary(reporting.rate)["bins"]
    console.print()
    for name, responses in summary.responses.items():
        flagged = summary.flagged[name]
        console.print(
            f"{name}: {flagged} of {responses} responses flagged "
            f"({100 * flagged / responses:.1f}%)",
            markup=False,
        )
    for each in known:
        low, high = each["realised_rate"]
        shortest, longest = each["lengths"]
        lengths = "" if len(known) == 1 else f" of {shortest} to {longest or 'more'} tokens"
        console.print(
            f"of good responses{lengths} at most {100 * reporting.rate:g}% are, on average "
            f"over draws of the {each['good_responses']} that calibrated; with these, "
            f"{100 * low:.1f} to {100 * high:.1f}% (95%)",
            markup=False,
        )
    for reason, skipped in summary.scored.skipped.items():
        console.print(f"{skipped} skipped: {reason}", markup=False)
    console.print(f"page: {arguments.out / 'index.html'}", markup=False, soft_wrap=True)
