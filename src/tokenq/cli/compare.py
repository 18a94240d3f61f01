"""`tokenq compare`: credit beside surprisal, position and other token scores, on the same text."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from tokenq.cli.arguments import (
    CommandParser,
    add_data_arguments,
    add_model_arguments,
    check_reference,
    count_rows,
    load_models,
)
from tokenq.errors import UserError
from tokenq.report.progress import progress_bar
from tokenq.storage import check_writable, write_text

if TYPE_CHECKING:
    from tokenq.credit.sources import Agreement, OutcomeEncoder, OutcomeModel, TokenSource
    from tokenq.models.pair import Pair

SOURCES = {
    "implicit_reward": "beta * log(policy / reference), what `tokenq credit` shows",
    "surprisal": "-log p under the reference",
    "policy_surprisal": "-log p under the policy",
    "entropy": "of the reference's next token",
    "policy_entropy": "of the policy's next token",
    "prompt_information": "log p under the reference with the prompt, less without it",
    "gradient_input": "input vector times gradient of the summed log-ratio; slower",
    "q_rm": "beta * logit of the token under the policy, for a policy trained by q_rm",
    "position": "tokens before it",
    "length": "characters in it",
}
"""Names that `--sources` takes, besides those of the estimators of credit."""

_DEFAULT = ("implicit_reward", "surprisal", "entropy", "position", "length")


def main(argv: list[str]) -> int:
    """Run the command."""
    arguments = _parser().parse_args(argv)
    names = _names(arguments)
    if arguments.beta <= 0:
        raise UserError(f"--beta is {arguments.beta}; accepted: a number above 0")
    if arguments.batch < 1:
        raise UserError(f"--batch is {arguments.batch}; accepted: 1 or more rows")
    console = Console(highlight=False)

    from tokenq.data import load_rows

    rows = load_rows(
        arguments.data,
        split=arguments.split,
        config=arguments.config,
        limit=arguments.limit,
        rejects=arguments.out / "rejects.jsonl" if arguments.skip_bad_rows else None,
    )
    check_reference(arguments)
    check_writable(arguments.out, "--out")
    outcome = _outcome_model(arguments)
    pair = load_models(arguments, console)

    from tokenq.credit.sources import compare_dataset
    from tokenq.models.fingerprint import weight_hash
    from tokenq.models.pair import reference_of

    sources = [*(_source(name, pair, arguments.beta) for name in names), *outcome]
    settings = {
        "policy_hash": weight_hash(pair.policy),
        "reference_hash": weight_hash(reference_of(pair)),
        "outcome_model": arguments.outcome_model,
        "outcome_hash": weight_hash(outcome[0].model) if outcome else None,
        "beta": arguments.beta,
    }
    with progress_bar("Comparing sources", console) as progress:
        task = progress.add_task("", total=count_rows(rows))
        agreement = compare_dataset(
            sources,
            rows,
            arguments.out,
            settings,
            words=arguments.words,
            batch=arguments.batch,
            skip_bad_rows=arguments.skip_bad_rows,
            on_progress=lambda count: progress.advance(task, count),
        )
    named = {"policy": pair.policy_name, "reference": pair.reference_name, "data": rows.source}
    report = {**named, **settings, "words": arguments.words, **agreement.to_dict()}
    report["rejected"] = rows.rejected
    write_text(arguments.out / "summary.json", json.dumps(report, indent=2) + "\n")
    _show(agreement, arguments.out, console)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "compare",
        "Put the credit of each token beside other scores of the same text, so that what they "
        "share can be seen: OUT/sources.jsonl and how alike they rank the tokens.",
    )
    add_model_arguments(parser)
    add_data_arguments(parser, "data", "folder for sources.jsonl and summary.json")
    reading = parser.add_argument_group("sources")
    listed = "; ".join(f"{name}: {text}" for name, text in SOURCES.items())
    reading.add_argument(
        "--sources",
        nargs="+",
        default=_DEFAULT,
        metavar="NAME",
        help=f"what is compared; offsets are those of the first one's tokens. {listed}; or an "
        "estimator of credit (centred, words, ...)",
    )
    reading.add_argument(
        "--outcome_model",
        "--outcome-model",
        help="a reward model of whole responses (hub name or folder), read by prefix differences",
    )
    reading.add_argument("--words", action="store_true", help="score words instead of tokens")
    reading.add_argument(
        "--beta", type=float, default=0.1, help="the KL penalty that the policy was trained with"
    )
    reading.add_argument("--batch", type=int, default=8, help="rows scored together")
    return parser


def _names(arguments: argparse.Namespace) -> list[str]:
    from tokenq.credit.estimators import ESTIMATORS

    names = list(arguments.sources)
    unknown = [name for name in names if name not in SOURCES and name not in ESTIMATORS]
    if unknown:
        accepted = ", ".join([*SOURCES, *ESTIMATORS])
        raise UserError(f"--sources: '{unknown[0]}' is unknown; accepted: {accepted}")
    twice = [name for place, name in enumerate(names) if name in names[:place]]
    if twice:
        raise UserError(f"--sources: '{twice[0]}' is named twice; accepted: each name once")
    return names


def _outcome_model(
    arguments: argparse.Namespace,
) -> "list[OutcomeModel | OutcomeEncoder]":
    """The reward model's source. Its refusals come before the pair's weights are read."""
    if arguments.outcome_model is None:
        return []
    from tokenq.credit.sources import open_outcome_model

    return [
        open_outcome_model(arguments.outcome_model, device=arguments.device, dtype=arguments.dtype)
    ]


def _source(name: str, pair: "Pair", beta: float) -> "TokenSource":
    from tokenq.credit import sources as s

    policy, reference = s.LanguageModel.policy_of(pair), s.LanguageModel.reference_of(pair)
    made: dict[str, Any] = {
        "implicit_reward": lambda: s.ImplicitReward(pair, beta, name),
        "surprisal": lambda: s.Surprisal(reference, name),
        "policy_surprisal": lambda: s.Surprisal(policy, name),
        "entropy": lambda: s.Entropy(reference, name),
        "policy_entropy": lambda: s.Entropy(policy, name),
        "prompt_information": lambda: s.PromptInformation(reference, name=name),
        "gradient_input": lambda: s.GradientInput(pair, beta=beta, name=name),
        "q_rm": lambda: s.DiscriminativePolicy(policy, beta, name=name),
        "position": lambda: s.Position(pair.tokenizer, name),
        "length": lambda: s.Length(pair.tokenizer, name),
    }
    source: TokenSource = made.get(name, lambda: s.Estimated(pair, name, beta, name))()
    return source


def _show(agreement: "Agreement", out: Path, console: Console) -> None:
    report = agreement.to_dict()
    first = agreement.names[0]
    table = Table("source", f"rho with {first}", box=None)
    for name, rho in report["correlations"][first].items():
        table.add_row(name, "constant" if rho is None else f"{rho:+.3f}")
    console.print(table)
    skipped = f", {agreement.skipped} rows left out" if agreement.skipped else ""
    console.print(
        f"{agreement.responses} responses{skipped}; Spearman's rho of blame within a response, mean"
    )
    console.print(f"scores: {out / 'sources.jsonl'}", soft_wrap=True)
