"""`tokenq reproduce reference`: what the reference policy does, where true quality is known.

"Understanding Reference Policies in Direct Preference Optimization" (arXiv 2407.13709) in small: a
tiny Llama, the language of `synthetic.clauses`, preferences drawn from the true quality.
"""

import argparse
import copy
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from transformers import LlamaForCausalLM

from tokenq.objectives import DPO
from tokenq.report.progress import progress_bar
from tokenq.reproduce.experiment import Experiment, Results, Run
from tokenq.reproduce.findings import Finding, finding, findings_table, held_out_best
from tokenq.reproduce.statistics import Estimate, estimate, shown
from tokenq.reproduce.synthetic import clauses
from tokenq.reproduce.synthetic.fitting import (
    AveragedReference,
    FixedReference,
    Pairs,
    Reference,
    Schedule,
    fit_pairs,
    fit_responses,
)
from tokenq.reproduce.synthetic.policies import Ids, sample, scores, sums, tiny_policy
from tokenq.reproduce.synthetic.world import SeededWorld

ARMS = {
    "self": "the policy's own start",
    "none": "no reference: log-probability 0 for every token",
    "marginal": "the start without the prompt, p(y): the reward is p(x|y)",
    "strong": "a model trained on skilled texts of the same format",
    "strong, other format": "a model trained on equally skilled texts of another format",
    "moving": "the start, moved towards the policy every 16 steps (TR-DPO)",
}
SWEEP = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
BETAS: dict[str, tuple[float, ...]] = {
    "self": SWEEP,
    "none": (100.0, 10.0, 1.0, 0.1, 0.01),
    "marginal": (1.0, 0.3, 0.1),
    "strong": (100.0, 10.0, 3.0, 1.0, 0.3, 0.1),
    "strong, other format": (100.0, 10.0, 3.0, 1.0, 0.3, 0.1),
    "moving": (1.0, 0.3, 0.1),
}
MOST_TOKENS = 16 * clauses.CLAUSE
MIXUP, MIXUP_STEPS = 0.6, 16
MASKED_PROMPTS = 0.1
"""Share of the supervised rows without topics, so that the start also knows p(y)."""


@dataclass(frozen=True)
class Scale:
    """How much of everything.

    seeds:       independent repetitions: corpora, models, pairs and samples all differ
    corpus:      texts that the models are trained on before preferences
    pretraining: their schedule
    pairs:       preference pairs, two samples of the start each
    sharpness:   P(a preferred over b) = sigmoid(sharpness * (quality(a) - quality(b)))
    preference:  schedule of preference training
    held_out:    pairs that no one is trained on
    judged:      samples that the true quality of a policy is measured on
    betas:       of every arm
    """

    seeds: int
    corpus: int
    pretraining: Schedule
    pairs: int
    sharpness: float
    preference: Schedule
    held_out: int
    judged: int
    betas: Mapping[str, tuple[float, ...]]

    def decides(self) -> dict[str, Any]:
        """All that a single run depends on."""
        rest = asdict(self)
        del rest["seeds"], rest["betas"]
        return rest


FULL = Scale(
    seeds=3,
    corpus=3000,
    pretraining=Schedule(steps=400, batch_size=32, learning_rate=3e-3),
    pairs=1536,
    sharpness=6.0,
    preference=Schedule(steps=96, batch_size=16, learning_rate=1e-3),
    held_out=256,
    judged=384,
    betas=BETAS,
)
QUICK = Scale(
    seeds=2,
    corpus=64,
    pretraining=Schedule(steps=8, batch_size=16, learning_rate=3e-3),
    pairs=16,
    sharpness=4.0,
    preference=Schedule(steps=2, batch_size=8, learning_rate=1e-3),
    held_out=16,
    judged=16,
    betas=dict.fromkeys(ARMS, (1.0, 0.001)),
)


class World(SeededWorld[Scale]):
    """Everything that the runs of one seed share; each part is made when it is first asked for."""

    @cached_property
    def start(self) -> LlamaForCausalLM:
        """Trained on texts of mixed skill: where every policy starts."""
        return self._trained(clauses.Writer(0.0, 1.0), 0)

    @cached_property
    def strong(self) -> LlamaForCausalLM:
        """Trained on skilled texts."""
        return self._trained(clauses.Writer(0.9, 1.0), 1)

    @cached_property
    def strong_inverted(self) -> LlamaForCausalLM:
        """Trained on skilled texts of the other format."""
        return self._trained(clauses.Writer(0.9, 1.0, clauses.INVERTED), 2)

    @cached_property
    def pairs(self) -> Pairs:
        """Samples of the start, labelled by Bradley and Terry's model of the true quality."""
        return self._sampled_pairs(self.scale.pairs, 3)

    @cached_property
    def held_out(self) -> Pairs:
        """Samples of the start, the truly better one chosen; none of equal quality."""
        pairs = self._sampled_pairs(self.scale.held_out, 4)
        rows = list(zip(pairs.prompts, pairs.chosen, pairs.rejected, strict=True))
        ordered = [
            (prompt, *sorted(sides, key=lambda side: -clauses.quality(prompt, side)))
            for prompt, *sides in rows
            if len({clauses.quality(prompt, side) for side in sides}) == 2
        ]
        return Pairs(*(list(column) for column in zip(*ordered, strict=True)))

    @cached_property
    def held_out_start(self) -> FixedReference:
        """Scores of the held-out pairs under the start."""
        return FixedReference.of(self.start, self.held_out)

    def reference(self, arm: str) -> Reference:
        """The reference of an arm, for the training pairs; see `ARMS`."""
        if arm == "moving":
            return AveragedReference(copy.deepcopy(self.start), self.pairs, MIXUP, MIXUP_STEPS)
        return (
            self._fixed[arm] if arm in self._fixed else self._fixed.setdefault(arm, self._of(arm))
        )

    @cached_property
    def _fixed(self) -> dict[str, FixedReference]:
        return {}

    def _of(self, arm: str) -> FixedReference:
        pairs = self.pairs
        if arm == "self":
            return FixedReference.of(self.start, pairs)
        if arm == "none":
            sides = ([torch.zeros(len(ids)) for ids in side] for side in _sides(pairs))
            return FixedReference(*sides)
        if arm == "marginal":
            bare = [[clauses.BOS] for _ in pairs.prompts]
            return FixedReference.of(self.start, Pairs(bare, pairs.chosen, pairs.rejected))
        return FixedReference.of(self.strong if arm == "strong" else self.strong_inverted, pairs)

    def _trained(self, writer: clauses.Writer, purpose: int) -> LlamaForCausalLM:
        draw = self.draw(purpose)
        prompts = clauses.prompts(self.scale.corpus, draw)
        texts = [writer.write(prompt, draw) for prompt in prompts]
        shown_prompts = [p if draw.random() >= MASKED_PROMPTS else [clauses.BOS] for p in prompts]
        model = tiny_policy(clauses.VOCABULARY, draw.randrange(2**31))
        fit_responses(model, shown_prompts, texts, self.scale.pretraining, draw.randrange(2**31))
        return model

    def _sampled_pairs(self, count: int, purpose: int) -> Pairs:
        draw = self.draw(purpose)
        prompts = clauses.prompts(count, draw)
        first, second = (
            sample(self.start, prompts, MOST_TOKENS, draw.randrange(2**31)) for _ in range(2)
        )
        chosen, rejected = [], []
        for prompt, a, b in zip(prompts, first, second, strict=True):
            gap = clauses.quality(prompt, a) - clauses.quality(prompt, b)
            prefers_first = draw.random() < 1 / (1 + math.exp(-self.scale.sharpness * gap))
            chosen.append(a if prefers_first else b)
            rejected.append(b if prefers_first else a)
        return Pairs(prompts, chosen, rejected)


def measure(world: World, policy: LlamaForCausalLM, form: clauses.Format) -> Results:
    """What the page reports of a policy; log-probabilities in nats.

    quality:             mean true quality of samples
    length:              mean tokens of a sample, EOS not counted
    unended, malformed, repeated: shares, see `clauses.Text`
    kl:                  mean log pi(y|x) - log start(y|x) of the policy's samples
    likelihood_accuracy: share of held-out pairs whose better side the policy finds more likely
    reward_accuracy:     the same for log pi - log start
    eos_change, other_change: mean change of log pi since the start, at the held-out responses' EOS
                         and at their other tokens
    """
    draw = world.draw(5)
    prompts = clauses.prompts(world.scale.judged, draw)
    samples = sample(policy, prompts, MOST_TOKENS, draw.randrange(2**31))
    texts = [clauses.parse(ids, form) for ids in samples]
    qualities = [clauses.quality(p, ids, form) for p, ids in zip(prompts, samples, strict=True)]
    gains = sums(scores(policy, prompts, samples)) - sums(scores(world.start, prompts, samples))
    pairs = world.held_out
    now = FixedReference.of(policy, pairs)
    chosen, rejected = (sums(side) for side in now.sides)
    start_chosen, start_rejected = (sums(side) for side in world.held_out_start.sides)
    eos_change, other_change = _changes(pairs, now, world.held_out_start)
    return {
        "quality": _mean(qualities),
        "length": _mean([text.length for text in texts]),
        "unended": _mean([not text.ended for text in texts]),
        "malformed": _mean([text.malformed for text in texts]),
        "repeated": _mean([text.repeated for text in texts]),
        "kl": float(gains.mean()),
        "likelihood_accuracy": float((chosen > rejected).double().mean()),
        "reward_accuracy": float(
            (chosen - start_chosen > rejected - start_rejected).double().mean()
        ),
        "eos_change": eos_change,
        "other_change": other_change,
    }


def run(run: Run) -> Results:
    """All arms, all values of beta, all seeds."""
    scale = QUICK if run.arguments.quick else FULL
    scale = replace(scale, seeds=run.arguments.seeds or scale.seeds)
    plan = [(arm, beta) for arm, betas in scale.betas.items() for beta in betas]
    starts, runs = [], []
    with progress_bar("policies trained", run.console) as progress:
        task = progress.add_task("", total=scale.seeds * (len(plan) + 1))
        for seed in range(scale.seeds):
            world = World(scale, seed)
            settings = {"seed": seed, **scale.decides()}
            starts.append(run.part(f"{seed}-models", settings, lambda w=world: _models(w)))  # type: ignore[misc]
            progress.advance(task)
            for arm, beta in plan:
                result = run.part(
                    f"{seed}-{arm.replace(', ', '-').replace(' ', '-')}-{beta:g}",
                    {**settings, "arm": arm, "beta": beta},
                    lambda w=world, a=arm, b=beta: _trained_policy(w, a, b),  # type: ignore[misc]
                )
                runs.append({"seed": seed, "arm": arm, "beta": beta, **result})
                progress.advance(task)
    return {
        "scale": asdict(scale),
        "models": starts,
        "runs": runs,
        "findings": _findings(_Table(runs), starts),
    }


def figure(results: Results) -> Figure:
    """Quality over beta for every arm; what beta does to ranking, EOS and length."""
    table = _Table(results["runs"])
    drawing = Figure(figsize=(11, 7.5), layout="constrained")
    axes = drawing.subplots(2, 2)
    for arm in ARMS:
        _curve(axes[0, 0], table, arm, "quality", arm)
        _curve(axes[0, 1], table, arm, "length", arm)
    start = estimate([models["start"]["quality"] for models in results["models"]])
    axes[0, 0].axhline(start["mean"], color="grey", linestyle=":", label="start")
    axes[0, 0].set(title="true quality", ylabel="quality of samples", ylim=(0, 1))
    axes[0, 0].legend(fontsize=8)
    length = estimate([models["start"]["length"] for models in results["models"]])
    axes[0, 1].axhline(length["mean"], color="grey", linestyle=":")
    axes[0, 1].set(title="length of samples", ylabel="tokens", ylim=(0, MOST_TOKENS))
    _curve(axes[1, 0], table, "self", "likelihood_accuracy", "the policy's own likelihood")
    _curve(axes[1, 0], table, "self", "reward_accuracy", "log-ratio to the start")
    axes[1, 0].set(title="held-out pairs ranked rightly, reference self", ylabel="share")
    axes[1, 0].legend(fontsize=8)
    _curve(axes[1, 1], table, "self", "eos_change", "EOS")
    _curve(axes[1, 1], table, "self", "other_change", "other tokens")
    axes[1, 1].set(title="change of log-probability, reference self", ylabel="nats a token")
    axes[1, 1].legend(fontsize=8)
    for axis in axes.flat:
        axis.set_xscale("log")
        axis.set_xlabel("beta")
    return drawing


def page(results: Results) -> str:
    """What was done, what came out, what was expected."""
    scale, table = results["scale"], _Table(results["runs"])
    models = {
        name: estimate([seed[name]["quality"] for seed in results["models"]])
        for name in results["models"][0]
    }
    size, steps = results["models"][0]["start"]["parameters"], scale["preference"]["steps"]
    return f"""
<!-- --8<-- [start:measured] -->
A Llama of {size:,} parameters learns a language whose true quality is a formula, from texts of
mixed skill; {scale["pairs"]} pairs of its own samples are labelled by drawing from Bradley and
Terry's model of the true quality (sharpness {scale["sharpness"]:g}); DPO runs for {steps} steps
of {scale["preference"]["batch_size"]} pairs at a fixed learning rate, whatever beta and reference.
Means over {scale["seeds"]} seeds with 95 % intervals.

Quality of the models before preferences: {
        "; ".join(f"{name} {shown(value)}" for name, value in models.items())
    }.

{findings_table(results["findings"])}

"At its best beta": the beta is chosen for each seed by the other seeds' mean.
<!-- --8<-- [end:measured] -->

## All runs

{_runs_table(table)}

`kl`: nats a response, from the start. `malformed`: share of tokens outside of a clause.
`likelihood` and `reward`: held-out pairs ranked rightly by log pi and by log pi - log start.

References: {"; ".join(f"*{arm}*, {text}" for arm, text in ARMS.items())}.

## Limits

One language, one model size, one learning rate and number of steps: where the best beta lies
depends on all of them, and on the sharpness of the preferences. The quality counts a repeated
clause as worthless; apart from that length is neutral. The strong models are themselves imperfect
and the policy never sees their samples, only their log-probabilities.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the experiment's own options."""
    parser.add_argument(
        "--quick", action="store_true", help="a few steps of everything, to see that it runs"
    )
    parser.add_argument("--seeds", type=int, help=f"repetitions; unset: {FULL.seeds}")


EXPERIMENT = Experiment(
    description=(
        "The reference policy of DPO (arXiv 2407.13709) where true quality is known: the strength "
        "of its pull, none at all, a stronger one, one of another format, one that follows."
    ),
    run=run,
    figure=figure,
    page=page,
    add_arguments=add_arguments,
)


class _Table:
    """Measures of all runs, by arm and beta, one value a seed."""

    def __init__(self, runs: Sequence[Mapping[str, Any]]) -> None:
        self._runs = runs

    def betas(self, arm: str) -> list[float]:
        return sorted({one["beta"] for one in self._runs if one["arm"] == arm}, reverse=True)

    def values(self, arm: str, beta: float, name: str) -> list[float]:
        chosen = [one for one in self._runs if (one["arm"], one["beta"]) == (arm, beta)]
        return [one[name] for one in sorted(chosen, key=lambda one: one["seed"])]

    def estimate(self, arm: str, beta: float, name: str) -> Estimate:
        return estimate(self.values(arm, beta, name))

    def best_betas(self, arm: str) -> list[float]:
        return held_out_best({b: self.values(arm, b, "quality") for b in self.betas(arm)})

    def at_best(self, arm: str, name: str) -> list[float]:
        return [
            self.values(arm, beta, name)[seed] for seed, beta in enumerate(self.best_betas(arm))
        ]


def _models(world: World) -> Results:
    return {
        "start": {
            "parameters": world.start.num_parameters(),
            **measure(world, world.start, clauses.PLAIN),
        },
        "strong": measure(world, world.strong, clauses.PLAIN),
        "strong, other format": measure(world, world.strong_inverted, clauses.INVERTED),
    }


def _trained_policy(world: World, arm: str, beta: float) -> Results:
    policy = copy.deepcopy(world.start)
    for _ in fit_pairs(
        policy,
        world.pairs,
        DPO(beta=beta),
        world.reference(arm),
        world.scale.preference,
        world.draw(6).randrange(2**31),
    ):
        pass
    return measure(world, policy, clauses.PLAIN)


def _findings(table: _Table, models: Sequence[Mapping[str, Any]]) -> list[Finding]:
    betas = table.betas("self")
    largest, smallest = betas[0], betas[-1]

    def of(name: str, beta: float, arm: str = "self") -> list[float]:
        return table.values(arm, beta, name)

    def best(arm: str, name: str = "quality") -> list[float]:
        return table.at_best(arm, name)

    def orders(arm: str) -> list[float]:
        own, other = table.best_betas("self"), table.best_betas(arm)
        return [math.log10(b / a) for a, b in zip(own, other, strict=True)]

    def start(name: str) -> list[float]:
        return [seed["start"][name] for seed in models]

    return [
        finding(
            "DPO improves on its start",
            "quality at the best beta - quality of the start",
            _minus(best("self"), start("quality")),
        ),
        finding(
            "inverted U: a large beta holds the policy back",
            f"quality at the best beta - at {largest:g}",
            _minus(best("self"), of("quality", largest)),
        ),
        finding(
            "inverted U: a small beta goes too far",
            f"quality at the best beta - at {smallest:g}",
            _minus(best("self"), of("quality", smallest)),
        ),
        finding(
            "text degenerates at the smallest beta",
            f"malformed share at {smallest:g} - at the best beta",
            _minus(of("malformed", smallest), best("self", "malformed")),
        ),
        finding(
            "the policy's own likelihood ranks pairs better the smaller beta",
            f"its accuracy at {smallest:g} - at {largest:g}",
            _minus(of("likelihood_accuracy", smallest), of("likelihood_accuracy", largest)),
        ),
        finding(
            "and does so monotonically",
            "steps of the sweep that raise it - steps that lower it, as a share",
            _monotony([of("likelihood_accuracy", beta) for beta in betas]),
        ),
        finding(
            "EOS becomes less likely the smaller beta",
            f"change of its log-prob at {largest:g} - at {smallest:g}, nats",
            _minus(of("eos_change", largest), of("eos_change", smallest)),
        ),
        finding(
            "EOS sinks further than other tokens",
            f"change of the others - change of EOS at {smallest:g}, nats",
            _minus(of("other_change", smallest), of("eos_change", smallest)),
        ),
        finding(
            "and at the best beta",
            "change of the others - change of EOS at the best beta, nats",
            _minus(best("self", "other_change"), best("self", "eos_change")),
        ),
        finding(
            "texts grow longer, though length is worth nothing",
            "tokens at the best beta - tokens of the start",
            _minus(best("self", "length"), start("length")),
        ),
        finding(
            "and the longer the smaller beta",
            f"tokens at {smallest:g} - at {largest:g}",
            _minus(of("length", smallest), of("length", largest)),
        ),
        finding(
            "a reference helps",
            "quality with self - with none, each at its best beta",
            _minus(best("self"), best("none")),
        ),
        finding(
            "without a reference the best beta is larger",
            "orders of magnitude (2 to 4 expected)",
            orders("none"),
        ),
        finding(
            "without a reference texts are longer",
            "tokens with none - with self, each at its best beta",
            _minus(best("none", "length"), best("self", "length")),
        ),
        finding(
            "the likelihood reward p(x given y) is weaker than DPO's own",
            "quality with self - with marginal, each at its best beta",
            _minus(best("self"), best("marginal")),
        ),
        finding(
            "a stronger reference of the same format helps",
            "quality with strong - with self, each at its best beta",
            _minus(best("strong"), best("self")),
        ),
        finding(
            "its best beta is larger",
            "orders of magnitude",
            orders("strong"),
        ),
        finding(
            "a strong reference of another format does not help",
            "quality with self - with strong, other format, each at its best beta",
            _minus(best("self"), best("strong, other format")),
        ),
        finding(
            "a reference that follows the policy helps (TR-DPO's claim, not this paper's)",
            "quality with moving - with self, each at its best beta",
            _minus(best("moving"), best("self")),
        ),
    ]


def _runs_table(table: _Table) -> str:
    names = {
        "quality": "quality",
        "kl": "kl",
        "length": "length",
        "malformed": "malformed",
        "likelihood_accuracy": "likelihood",
        "reward_accuracy": "reward",
        "eos_change": "EOS change",
    }
    lines = [
        "| reference | beta | " + " | ".join(names.values()) + " |",
        "|---" * (len(names) + 2) + "|",
    ]
    for arm in ARMS:
        for beta in table.betas(arm):
            cells = [
                shown(table.estimate(arm, beta, name), 1 if name in ("kl", "length") else 3)
                for name in names
            ]
            lines.append(f"| {arm} | {beta:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _curve(axis: Axes, table: _Table, arm: str, name: str, label: str) -> None:
    betas = table.betas(arm)
    values = [table.estimate(arm, beta, name) for beta in betas]
    means = [value["mean"] for value in values]
    (line,) = axis.plot(betas, means, marker="o", markersize=3, label=label)
    low = [value["low"] for value in values if value["low"] is not None]
    high = [value["high"] for value in values if value["high"] is not None]
    if len(low) == len(betas):
        axis.fill_between(betas, low, high, color=line.get_color(), alpha=0.15, linewidth=0)


def _changes(pairs: Pairs, now: FixedReference, start: FixedReference) -> tuple[float, float]:
    eos: list[float] = []
    others: list[float] = []
    for side, new_side, old_side in zip(_sides(pairs), now.sides, start.sides, strict=True):
        for ids, new, old in zip(side, new_side, old_side, strict=True):
            change = (new - old).tolist()
            for token, value in zip(ids, change, strict=True):
                (eos if token == clauses.EOS else others).append(value)
    return _mean(eos), _mean(others)


def _monotony(steps: Sequence[Sequence[float]]) -> list[float]:
    seeds = list(zip(*steps, strict=True))
    return [_mean([(b > a) - (b < a) for a, b in itertools.pairwise(seed)]) for seed in seeds]


def _sides(pairs: Pairs) -> tuple[list[Ids], list[Ids]]:
    return pairs.chosen, pairs.rejected


def _minus(first: Sequence[float], second: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(first, second, strict=True)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
