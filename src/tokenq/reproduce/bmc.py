"""`tokenq reproduce bmc`: bridged pairs and token weights, where every wrong token is known.

"Bridging and Modeling Correlations in Pairwise Data for Direct Preference Optimization"
(arXiv 2408.07471) in small: a tiny Llama sorts digits, an exact editor mends its wrong answers.
"""

import argparse
import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from transformers import LlamaForCausalLM

from tokenq.data.edits import edited_tokens
from tokenq.objectives import DPO
from tokenq.objectives.bmc import BMC
from tokenq.report.progress import progress_bar
from tokenq.reproduce.experiment import Experiment, Results, Run
from tokenq.reproduce.findings import Finding, finding, findings_table
from tokenq.reproduce.statistics import estimate, shown
from tokenq.reproduce.synthetic import digits
from tokenq.reproduce.synthetic.fitting import (
    FixedReference,
    PairLoss,
    Pairs,
    Schedule,
    fit_pairs,
    fit_responses,
)
from tokenq.reproduce.synthetic.policies import Ids, sample, scores, sums, tiny_policy
from tokenq.reproduce.synthetic.world import SeededWorld

DIGITS = 6
MOST_TOKENS = 2 * DIGITS + 6
BETA, DELTA = 0.1, 2.0

ARMS = {
    "DPO": "chosen: a right answer in another style",
    "DPO-MC": "the same pairs, edited tokens weighted",
    "DPO-BC": "chosen: the rejected answer, mended",
    "DPO-BMC": "mended, edited tokens weighted (the paper's form)",
    "DPO-BMC, released": "mended, edited tokens weighted as the released code does",
    "DPO-BMC, shuffled": "mended, as many tokens weighted, but at random places",
}
CREDIT = ("share_wrong", "share_first", "lowest_is_wrong")


@dataclass(frozen=True)
class Scale:
    """How much of everything.

    repeats:     learning rates of preference training, and the seeds of each: models, pairs and
                 samples all differ; the weights and the noise of a loss act like a learning rate
    corpus:      answers that the start is trained on
    slip:        share of the digits in them that are wrong
    pretraining: their schedule
    prompts:     prompts that the start is sampled on; its wrong answers make the pairs
    preference:  schedule of preference training, whatever its rate
    evaluations: how often accuracy and KL are measured on the way
    judged:      held-out prompts for that, and for the start's wrong answers that credit is read on
    """

    repeats: Mapping[float, int]
    corpus: int
    slip: float
    pretraining: Schedule
    prompts: int
    preference: Schedule
    evaluations: int
    judged: int

    def decides(self) -> dict[str, Any]:
        """All that a single run depends on."""
        rest = asdict(self)
        del rest["repeats"]
        return {**rest, "digits": DIGITS, "beta": BETA, "delta": DELTA}


FULL = Scale(
    repeats={1e-4: 5, 3e-4: 3},
    corpus=8000,
    slip=0.1,
    pretraining=Schedule(steps=500, batch_size=32, learning_rate=3e-3),
    prompts=2400,
    preference=Schedule(steps=120, batch_size=16, learning_rate=1e-4),
    evaluations=8,
    judged=512,
)
QUICK = Scale(
    repeats={1e-3: 2},
    corpus=64,
    slip=0.1,
    pretraining=Schedule(steps=8, batch_size=16, learning_rate=3e-3),
    prompts=16,
    preference=Schedule(steps=4, batch_size=8, learning_rate=1e-3),
    evaluations=2,
    judged=16,
)


class World(SeededWorld[Scale]):
    """Everything that the runs of one seed share; each part is made when it is first asked for."""

    @cached_property
    def start(self) -> LlamaForCausalLM:
        """Trained on answers in all styles, some digits of which are wrong."""
        draw = self.draw(0)
        prompts = digits.prompts(self.scale.corpus, DIGITS, draw)
        answers = [
            draw.choice(digits.STYLES).write(
                digits.slips(digits.answer_of(prompt), self.scale.slip, draw)
            )
            for prompt in prompts
        ]
        model = tiny_policy(digits.VOCABULARY, draw.randrange(2**31))
        fit_responses(model, prompts, answers, self.scale.pretraining, draw.randrange(2**31))
        return model

    @cached_property
    def independent(self) -> Pairs:
        """The start's wrong answers, and right answers in another style."""
        prompts, wrong = self._mistakes(self.scale.prompts, 1)
        draw = self.draw(2)
        right = [
            draw.choice([s for s in digits.STYLES if s != digits.style_of(ids)]).write(
                digits.answer_of(prompt)
            )
            for prompt, ids in zip(prompts, wrong, strict=True)
        ]
        return _marked(Pairs(prompts, right, wrong))

    @cached_property
    def bridged(self) -> Pairs:
        """The same wrong answers, and what the fewest edits make of them."""
        pairs = self.independent
        right = [digits.bridge(*row) for row in zip(pairs.prompts, pairs.rejected, strict=True)]
        return _marked(Pairs(pairs.prompts, right, pairs.rejected))

    @cached_property
    def shuffled(self) -> Pairs:
        """The bridged pairs, as many marks at random places."""
        draw = self.draw(3)

        def moved(sides: list[list[bool]] | None) -> list[list[bool]]:
            return [draw.sample(marks, len(marks)) for marks in sides or []]

        pairs = self.bridged
        return replace(
            pairs,
            chosen_edits=moved(pairs.chosen_edits),
            rejected_edits=moved(pairs.rejected_edits),
        )

    @cached_property
    def mistakes(self) -> tuple[list[Ids], list[Ids]]:
        """Held-out prompts and wrong answers of the start, on which credit is read."""
        return self._mistakes(self.scale.judged, 4)

    @cached_property
    def mistakes_start(self) -> list[Tensor]:
        """Log-probs of their tokens under the start."""
        return scores(self.start, *self.mistakes)

    @cached_property
    def independent_scores(self) -> FixedReference:
        """The start's scores of the independent pairs."""
        return FixedReference.of(self.start, self.independent)

    @cached_property
    def bridged_scores(self) -> FixedReference:
        """The start's scores of the bridged pairs."""
        return FixedReference.of(self.start, self.bridged)

    def _mistakes(self, count: int, purpose: int) -> tuple[list[Ids], list[Ids]]:
        draw = self.draw(purpose)
        prompts = digits.prompts(count, DIGITS, draw)
        answers = sample(self.start, prompts, MOST_TOKENS, draw.randrange(2**31))
        wrong = [
            (prompt, answer)
            for prompt, answer in zip(prompts, answers, strict=True)
            if not digits.is_right(prompt, answer)
        ]
        return [prompt for prompt, _ in wrong], [answer for _, answer in wrong]


def accuracy_and_kl(world: World, policy: LlamaForCausalLM) -> tuple[float, float]:
    """Share of right samples on held-out prompts, and mean log pi - log start of the samples."""
    draw = world.draw(5)
    prompts = digits.prompts(world.scale.judged, DIGITS, draw)
    samples = sample(policy, prompts, MOST_TOKENS, draw.randrange(2**31))
    right = [digits.is_right(*row) for row in zip(prompts, samples, strict=True)]
    gains = sums(scores(policy, prompts, samples)) - sums(scores(world.start, prompts, samples))
    return float(np.mean(right)), float(gains.mean())


def credit(world: World, policy: LlamaForCausalLM) -> dict[str, float]:
    """Where the token rewards log pi - log start of held-out wrong answers lie, means over answers.

    share_wrong:     share of sum |reward| on the tokens that the fewest edits replace or delete
    share_first:     its share on the first token after which no right answer can follow
    lowest_is_wrong: how often the lowest reward stands on one of the former
    tokens_wrong, tokens_first: the shares that equal rewards would give

    Only answers whose edits replace or delete a token count.
    """
    rows = []
    now = scores(policy, *world.mistakes)
    for prompt, answer, new, old in zip(*world.mistakes, now, world.mistakes_start, strict=True):
        _, marks = edited_tokens(digits.bridge(prompt, answer), answer)
        first = digits.first_wrong(prompt, answer)
        if first is None or not any(marks):
            continue
        rewards = (new - old).double().numpy()
        size = np.abs(rewards)
        total = max(float(size.sum()), 1e-12)
        rows.append(
            {
                "share_wrong": float(size[marks].sum()) / total,
                "share_first": float(size[first]) / total,
                "lowest_is_wrong": float(marks[int(rewards.argmin())]),
                "tokens_wrong": float(np.mean(marks)),
                "tokens_first": 1 / len(answer),
            }
        )
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def run(run: Run) -> Results:
    """All arms, all seeds."""
    scale = QUICK if run.arguments.quick else FULL
    if run.arguments.seeds:
        scale = replace(scale, repeats=dict.fromkeys(scale.repeats, run.arguments.seeds))
    seeds = range(max(scale.repeats.values()))
    starts, runs = [], []
    with progress_bar("policies trained", run.console) as progress:
        total = len(seeds) + len(ARMS) * sum(scale.repeats.values())
        task = progress.add_task("", total=total)
        for seed in seeds:
            world = World(scale, seed)
            settings = {"seed": seed, **scale.decides()}
            starts.append(run.part(f"{seed}-start", settings, lambda w=world: _start(w)))  # type: ignore[misc]
            progress.advance(task)
            rates = [rate for rate, count in scale.repeats.items() if seed < count]
            for rate, arm in itertools.product(rates, ARMS):
                schedule = replace(scale.preference, learning_rate=rate)
                result = run.part(
                    f"{seed}-{arm.replace(', ', '-')}-{rate:g}",
                    {**settings, "preference": asdict(schedule), "arm": arm},
                    lambda w=world, a=arm, s=schedule: _trained(w, a, s),  # type: ignore[misc]
                )
                runs.append({"seed": seed, "arm": arm, "rate": f"{rate:g}", **result})
                progress.advance(task)
    tables = {rate: _table(starts, runs, rate) for rate in (f"{r:g}" for r in scale.repeats)}
    return {
        "scale": {**asdict(scale), "repeats": {f"{r:g}": n for r, n in scale.repeats.items()}},
        "starts": starts,
        "runs": runs,
        "tables": tables,
        "findings": {rate: _findings(table) for rate, table in tables.items()},
    }


def figure(results: Results) -> Figure:
    """For each learning rate: accuracy over KL during training, and where the rewards lie."""
    tables = results["tables"]
    drawing = Figure(figsize=(11, 4.2 * len(tables)), layout="constrained")
    axes = drawing.subplots(len(tables), 2, squeeze=False)
    for (left, right), (rate, table) in zip(axes, tables.items(), strict=True):
        runs = [run for run in results["runs"] if run["rate"] == rate]
        _draw_curves(left, runs, results["starts"], rate)
        _draw_credit(right, table, rate)
    return drawing


def page(results: Results) -> str:
    """What was done, what came out, what was expected."""
    scale, tables = results["scale"], results["tables"]
    start = estimate([one["accuracy"] for one in results["starts"]])
    pairs = estimate([one["pairs"] for one in results["starts"]])
    steps = scale["preference"]["steps"]
    measures = next(iter(tables.values()))["DPO"]
    by_rate = "\n\n".join(
        f"**Learning rate {rate}, {scale['repeats'][rate]} seeds**\n\n{_arms_table(table)}\n\n"
        f"{findings_table(results['findings'][rate])}"
        for rate, table in tables.items()
    )
    return f"""
<!-- --8<-- [start:measured] -->
A Llama of {results["starts"][0]["parameters"]:,} parameters sorts {DIGITS} digits and writes them
in one of four styles (figures or words, two separators); {100 * scale["slip"]:g} % of the digits it
was trained on are wrong. Its wrong samples ({shown(pairs, 0)} a seed) are rejected; chosen is a
right answer in another style, or the rejected answer with the fewest edits that make it right (an
exact editor, no language model). {steps} steps of {scale["preference"]["batch_size"]} pairs,
beta {BETA:g}, delta {DELTA:g}. Means over seeds with 95 % intervals.

Before preferences {shown(start)} of the samples are right. *At matched KL*: where a run's curve
first reaches the largest KL that all arms of its seed and learning rate reach, and half of it. *At
its best*: at the best of {scale["evaluations"]} points on the way.
*Tokens to mend* and *first wrong token*: share of |log pi - log start| there, on held-out wrong
answers; rewards of equal size would give {shown(estimate(measures["tokens_wrong"]))} and
{shown(estimate(measures["tokens_first"]))}. *Lowest*: how often the lowest reward stands on a token
to mend.

{by_rate}
<!-- --8<-- [end:measured] -->

Arms: {"; ".join(f"*{arm}*, {text}" for arm, text in ARMS.items())}.

## What is controlled

- Both kinds of chosen answers are right, so a bridged pair is not better data in another guise:
  the only difference is how much of it has to do with the mistake.
- DPO-BC is the control for the weights of DPO-BMC (same pairs, marks off), DPO-MC for bridging
  (same weights, independent pairs), the shuffled marks for their places.
- Credit is read on answers that no arm was trained on.

## Limits

One task with about one mistake an answer, one model size, one beta. The edits are exact; an editor
that is a language model also changes what was right. Weights enlarge the gradient of the loss, so
arms differ in how far a step goes: compare them at matched KL.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the experiment's own options."""
    parser.add_argument(
        "--quick", action="store_true", help="a few steps of everything, to see that it runs"
    )
    parser.add_argument(
        "--seeds",
        type=int,
        help="repetitions of each learning rate; unset: "
        + ", ".join(f"{count} of {rate:g}" for rate, count in FULL.repeats.items()),
    )


EXPERIMENT = Experiment(
    description=(
        "BMC (arXiv 2408.07471) where every wrong token is known: bridged against independent "
        "pairs, with and without weights on edited tokens; accuracy at matched KL and where the "
        "token rewards lie."
    ),
    run=run,
    figure=figure,
    page=page,
    add_arguments=add_arguments,
)

_Table = dict[str, dict[str, list[float]]]


def _start(world: World) -> Results:
    accuracy, _ = accuracy_and_kl(world, world.start)
    return {
        "accuracy": accuracy,
        "parameters": world.start.num_parameters(),
        "pairs": len(world.bridged),
    }


def _trained(world: World, arm: str, schedule: Schedule) -> Results:
    pairs, reference, objective = _arm(world, arm)
    policy = copy.deepcopy(world.start)
    every = schedule.steps // world.scale.evaluations
    curve = []
    seed = world.draw(6).randrange(2**31)
    for step in fit_pairs(policy, pairs, objective, reference, schedule, seed):
        if step % every == 0:
            accuracy, kl = accuracy_and_kl(world, policy)
            curve.append({"step": step, "accuracy": accuracy, "kl": kl})
    return {"curve": curve, **credit(world, policy)}


def _arm(world: World, arm: str) -> tuple[Pairs, FixedReference, PairLoss]:
    plain, weighted = DPO(beta=BETA), BMC(beta=BETA, delta=DELTA)
    if arm in ("DPO", "DPO-MC"):
        return world.independent, world.independent_scores, plain if arm == "DPO" else weighted
    pairs = world.shuffled if arm == "DPO-BMC, shuffled" else world.bridged
    objectives: dict[str, PairLoss] = {
        "DPO-BC": plain,
        "DPO-BMC": weighted,
        "DPO-BMC, released": BMC(beta=BETA, delta=DELTA, bmc_form="released"),
        "DPO-BMC, shuffled": weighted,
    }
    return pairs, world.bridged_scores, objectives[arm]


def _marked(pairs: Pairs) -> Pairs:
    marks = [edited_tokens(*sides) for sides in zip(pairs.chosen, pairs.rejected, strict=True)]
    return replace(
        pairs,
        chosen_edits=[chosen for chosen, _ in marks],
        rejected_edits=[rejected for _, rejected in marks],
    )


def _table(
    starts: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]], rate: str
) -> _Table:
    """For every arm at a learning rate: name of a measure -> one value a seed."""
    at_rate = [one for one in runs if one["rate"] == rate]
    seeds = sorted({one["seed"] for one in at_rate})
    by_seed = [[one for one in at_rate if one["seed"] == seed] for seed in seeds]
    reached = [
        max(0.0, min(max(point["kl"] for point in run["curve"]) for run in seed))
        for seed in by_seed
    ]
    table: _Table = {}
    for arm in ARMS:
        own = [next(run for run in seed if run["arm"] == arm) for seed in by_seed]
        curves = [
            [{"kl": 0.0, "accuracy": start["accuracy"]}, *run["curve"]]
            for start, run in zip([starts[seed] for seed in seeds], own, strict=True)
        ]
        table[arm] = {
            "accuracy": [curve[-1]["accuracy"] for curve in curves],
            "accuracy_best": [max(point["accuracy"] for point in curve) for curve in curves],
            "kl": [curve[-1]["kl"] for curve in curves],
            "accuracy_matched": [at_kl(c, kl) for c, kl in zip(curves, reached, strict=True)],
            "accuracy_half": [at_kl(c, kl / 2) for c, kl in zip(curves, reached, strict=True)],
            **{name: [run[name] for run in own] for name in CREDIT},
            **{name: [run[name] for run in own] for name in ("tokens_wrong", "tokens_first")},
        }
    return table


def at_kl(curve: Sequence[Mapping[str, float]], kl: float) -> float:
    """Accuracy where the curve first reaches `kl`, linear between its points.

    Raises ValueError if it does not reach it.
    """
    before = curve[0]
    for point in curve:
        if point["kl"] >= kl:
            x, y = ([one[name] for one in (before, point)] for name in ("kl", "accuracy"))
            return float(np.interp(kl, x, y))
        before = point
    raise ValueError(f"the curve does not reach a KL of {kl}")


def _findings(table: _Table) -> list[Finding]:
    def less(first: str, second: str, name: str) -> list[float]:
        return [a - b for a, b in zip(table[first][name], table[second][name], strict=True)]

    def compared(claim: str, first: str, second: str, name: str, label: str) -> Finding:
        return finding(claim, f"{label}: {first} - {second}", less(first, second, name))

    matched = "share right at matched KL"
    mend = "share of reward on tokens to mend"
    return [
        compared("both together help", "DPO-BMC", "DPO", "accuracy_matched", matched),
        compared("bridging helps (the robust part)", "DPO-BC", "DPO", "accuracy_matched", matched),
        compared("weights help without bridging", "DPO-MC", "DPO", "accuracy_matched", matched),
        compared("weights help on bridged pairs", "DPO-BMC", "DPO-BC", "accuracy_matched", matched),
        compared(
            "the places of the weights matter",
            "DPO-BMC",
            "DPO-BMC, shuffled",
            "accuracy_matched",
            matched,
        ),
        compared(
            "the released form is no worse than the paper's",
            "DPO-BMC, released",
            "DPO-BMC",
            "accuracy_matched",
            matched,
        ),
        compared("credit: BMC above DPO", "DPO-BMC", "DPO", "share_wrong", mend),
        compared("credit: BC above MC", "DPO-BC", "DPO-MC", "share_wrong", mend),
        compared("credit: MC above DPO", "DPO-MC", "DPO", "share_wrong", mend),
        compared("credit: BMC above BC", "DPO-BMC", "DPO-BC", "share_wrong", mend),
        compared(
            "credit: BMC above shuffled weights",
            "DPO-BMC",
            "DPO-BMC, shuffled",
            "share_wrong",
            mend,
        ),
        compared(
            "credit: BC above DPO at the first wrong token",
            "DPO-BC",
            "DPO",
            "share_first",
            "share of reward there",
        ),
    ]


def _draw_curves(
    axis: Axes,
    runs: Sequence[Mapping[str, Any]],
    starts: Sequence[Mapping[str, Any]],
    rate: str,
) -> None:
    """Mean accuracy over mean KL; both at the same steps."""
    for arm in ARMS:
        curves = [run["curve"] for run in runs if run["arm"] == arm]
        kl = np.mean([[point["kl"] for point in curve] for curve in curves], axis=0)
        accuracy = np.mean([[point["accuracy"] for point in curve] for curve in curves], axis=0)
        start = float(np.mean([one["accuracy"] for one in starts[: len(curves)]]))
        style = "--" if arm == "DPO-BMC, released" else "-"  # or it hides the paper's form
        axis.plot([0.0, *kl], [start, *accuracy], style, marker="o", markersize=3, label=arm)
    axis.set(
        title=f"during training, learning rate {rate}",
        xlabel="KL to the start, nats a response",
        ylabel="share right",
    )
    axis.legend(fontsize=8)


def _draw_credit(axis: Axes, table: _Table, rate: str) -> None:
    places = np.arange(len(ARMS))
    for offset, name, label in (
        (-0.2, "share_wrong", "tokens to mend"),
        (0.2, "share_first", "first wrong token"),
    ):
        values = [estimate(table[arm][name]) for arm in ARMS]
        means = [value["mean"] for value in values]
        spread = [0.0 if v["low"] is None else v["mean"] - v["low"] for v in values]
        axis.bar(places + offset, means, 0.38, yerr=spread, label=label, capsize=2)
    equal = estimate(table["DPO"]["tokens_wrong"])["mean"]
    axis.axhline(equal, color="grey", linestyle=":", label="share of tokens to mend")
    axis.set_xticks(places, [arm.replace(", ", "\n") for arm in ARMS], fontsize=8)
    axis.set(title=f"|token reward|, held-out wrong answers, {rate}", ylabel="share", ylim=(0, 1))
    axis.legend(fontsize=8, ncols=3, loc="upper center")


def _arms_table(table: _Table) -> str:
    names = {
        "accuracy_half": "right at half the matched KL",
        "accuracy_matched": "right at matched KL",
        "accuracy_best": "right at its best",
        "accuracy": "right at the end",
        "kl": "KL at the end",
        "share_wrong": "tokens to mend",
        "share_first": "first wrong token",
        "lowest_is_wrong": "lowest",
    }
    lines = ["| arm | " + " | ".join(names.values()) + " |", "|---" * (len(names) + 1) + "|"]
    for arm, measures in table.items():
        cells = [shown(estimate(measures[name]), 2 if name == "kl" else 3) for name in names]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
