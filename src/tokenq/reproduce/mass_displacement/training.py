"""Training an adapter on the whole data set, and what held-out prompts say on the way."""

from collections import Counter
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from tokenq.models.forward import pad_rows, reference_predictions
from tokenq.models.head import NO_EXTRAS, Extras, TokenLogps
from tokenq.models.logps import token_logps
from tokenq.models.packing import pack_trees
from tokenq.models.reference import AdapterOff, scoring
from tokenq.objectives import LabelledLogps, PairLogps, ResponseLogps, StepFeatures
from tokenq.reproduce.mass_displacement.answers import (
    EVERY,
    KINDS,
    Pair,
    drawn_pair,
    said,
)
from tokenq.reproduce.mass_displacement.arms import Arm
from tokenq.reproduce.mass_displacement.bench import DisplacementBench, Prompt, fresh
from tokenq.reproduce.objective_runs import sample

WARMUP = 5
ONE_PACK = 1 << 20
STATED = ("right", "opposite", "other")
SAMPLED_PROMPTS, SAMPLES, SAMPLE_TOKENS = 8, 4, 14
Reading = dict[str, Any]


class HeldOut:
    """The held-out prompts, each with one pair of every kind, the same for all seeds and arms."""

    def __init__(self, bench: DisplacementBench) -> None:
        draw = Random("held out")
        self.bench, self.prompts = bench, bench.held_out
        self.pairs = {
            kind: [drawn_pair(i, p.right, kind, draw) for i, p in enumerate(self.prompts)]
            for kind in KINDS
        }
        self.start = self._logps(bench.model)

    def read(self, policy: nn.Module, step: int) -> Reading:
        """Means over held-out prompts.

        right, opposite: mass of first words of either meaning
        accuracy:        share of prompts on which the former is larger
        chosen, rejected: by kind of pair, log pi of the answer less that at the start, nats
        pairs:           by kind, share of pairs whose chosen answer is likelier than the rejected
        """
        now = self._logps(policy)
        masses = self.bench.masses(self.bench.first(policy, self.prompts), self.prompts)
        grown = {kind: (now[kind] - self.start[kind]).mean(0).tolist() for kind in KINDS}
        return {
            "step": step,
            "right": float(masses.right.mean()),
            "opposite": float(masses.opposite.mean()),
            "accuracy": float((masses.right > masses.opposite).double().mean()),
            "chosen": {kind: values[0] for kind, values in grown.items()},
            "rejected": {kind: values[1] for kind, values in grown.items()},
            "pairs": {k: float((v[:, 0] > v[:, 1]).double().mean()) for k, v in now.items()},
        }

    def written(self, policy: PeftModel, seed: int) -> dict[str, Any]:
        """What the policy now writes at temperature 1, a few samples for some of the prompts.

        right, opposite: share of samples that say so and nothing else, see `said`
        other:           of those that say neither, such as evasions
        texts:           the most common samples with their share

        What is left contradicts itself: the first word says one thing, a later one the other.
        """
        tokenizer = self.bench.bench.tokenizer
        counts: Counter[str] = Counter()
        meanings: Counter[str] = Counter()
        with torch.random.fork_rng(devices=[]), scoring(policy):
            torch.manual_seed(seed)
            for prompt in self.prompts[:SAMPLED_PROMPTS]:
                rows = sample(
                    policy,
                    self.bench.ids(prompt, EVERY[0])[0],
                    count=SAMPLES,
                    tokens=SAMPLE_TOKENS,
                    end=int(tokenizer.eos_token_id),
                )
                for row in rows:
                    text = str(tokenizer.decode(row, skip_special_tokens=True)).strip()
                    counts[text] += 1
                    meanings[_meaning(text, prompt)] += 1
        total = counts.total()
        shares = {name: meanings[name] / total for name in STATED}
        return {**shares, "texts": [[t, n / total] for t, n in counts.most_common(6)]}

    def _logps(self, model: nn.Module) -> dict[str, Tensor]:
        """By kind, log pi of (chosen, rejected), [N, 2]."""
        pairs = [pair for kind in KINDS for pair in self.pairs[kind]]
        prompts = [self.prompts[pair.prompt] for pair in pairs for _ in range(2)]
        answers = [answer for pair in pairs for answer in (pair.chosen, pair.rejected)]
        with scoring(model):
            sums = self.bench.sums(model, prompts, answers).view(len(KINDS), -1, 2)
        return dict(zip(KINDS, sums, strict=True))


class StartScores:
    """Log-probs of answers under the model without its adapter, each computed once."""

    def __init__(self, bench: DisplacementBench, policy: PeftModel) -> None:
        self._bench, self._start = bench, AdapterOff(policy)
        self._known: dict[tuple[Prompt, str], Tensor] = {}

    def __call__(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> Tensor:
        """log pi_ref of every token, flat, row after row."""
        keys = list(zip(prompts, answers, strict=True))
        missing = [key for key in dict.fromkeys(keys) if key not in self._known]
        if missing:
            ids = [self._bench.ids(*key) for key in missing]
            with torch.no_grad():
                found = token_logps(self._start, *zip(*ids, strict=True))
            self._known.update(zip(missing, found, strict=True))
        return torch.cat([self._known[key] for key in keys])


def trained(
    bench: DisplacementBench,
    policy: PeftModel,
    reference: StartScores,
    held_out: HeldOut,
    arm: Arm,
    pairs: Sequence[Pair],
    seed: int,
) -> list[Reading]:
    """Train a fresh adapter; the readings before the first step and at `settings.readings`."""
    settings = bench.settings
    weights = fresh(policy, seed)
    objective = arm.objective()
    optimizer = torch.optim.AdamW(weights, lr=settings.rate, weight_decay=0.0)
    order = batches(len(pairs), settings.batch_size, Random(f"order {seed}"))
    readings = [held_out.read(policy, 0)]
    for step in range(1, settings.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * min(1.0, step / WARMUP)
        batch = Scored(bench, policy, reference, [pairs[i] for i in next(order)], objective)
        loss = objective(batch.form(objective.kind))[0]
        if arm.nll:
            loss = loss - arm.nll * batch.chosen_mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        if step in settings.readings:
            readings.append(held_out.read(policy, step))
    return readings


class Scored:
    """Log-probs of a batch of pairs under policy and reference, in the forms objectives take."""

    def __init__(
        self,
        bench: DisplacementBench,
        policy: PeftModel,
        reference: StartScores,
        pairs: Sequence[Pair],
        objective: Any,
    ) -> None:
        prompts = [bench.training[pair.prompt] for pair in pairs]
        chosen, rejected = ([getattr(pair, side) for pair in pairs] for side in _SIDES)
        self.count = len(pairs)
        answers = [*chosen, *rejected]
        rows = [*prompts, *prompts]
        if objective.kind == "unpaired":
            # KTO measures its point on answers to other prompts.
            rows += [*prompts, *prompts]
            answers += [*_moved(chosen), *_moved(rejected)]
        logps, kl, lengths = _scores(bench, policy, rows, answers, "kl" in objective.needs)
        self.logps, self.mask = pad_rows(logps, lengths)
        self.ref_logps = pad_rows(reference(rows, answers), lengths)[0]
        self.kl = None if kl is None else pad_rows(kl, lengths)[0]

    def form(self, kind: str) -> Any:
        """The batch as an objective of this kind is called with."""
        if kind == "sft":
            return self._rows(0, 1)
        if kind == "unpaired":
            labels = torch.arange(2 * self.count) < self.count
            return LabelledLogps(self._rows(0, 2), labels, self._rows(2, 4))
        ours, theirs = self._rows(0, 1), self._rows(1, 2)
        assert ours.ref_logps is not None
        assert theirs.ref_logps is not None
        return PairLogps(
            ours.logps,
            theirs.logps,
            ours.ref_logps,
            theirs.ref_logps,
            ours.mask,
            theirs.mask,
            ours.features,
            theirs.features,
        )

    def chosen_mean(self) -> Tensor:
        """Mean log pi of the chosen tokens, nats, 0-dim."""
        side = self._rows(0, 1)
        return side.log_probs.sum() / side.mask.sum()

    def _rows(self, first: int, last: int) -> ResponseLogps:
        part = slice(first * self.count, last * self.count)
        features = StepFeatures(kl=None if self.kl is None else self.kl[part])
        return ResponseLogps(self.logps[part], self.mask[part], self.ref_logps[part], features)


def batches(count: int, size: int, draw: Random) -> Iterator[list[int]]:
    """Row numbers, shuffled anew in every pass; a pass leaves out what fills no batch."""
    size = min(size, count)
    while True:
        order = draw.sample(range(count), count)
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]


_SIDES = ("chosen", "rejected")


def _meaning(text: str, prompt: Prompt) -> str:
    found = said(text)
    if found in ("both", "neither"):
        return "contradictory" if found == "both" else "other"
    return "right" if found == prompt.right else "opposite"


def _moved(answers: Sequence[str]) -> list[str]:
    return [*answers[1:], *answers[:1]]


def _scores(
    bench: DisplacementBench,
    policy: PeftModel,
    prompts: Sequence[Prompt],
    answers: Sequence[str],
    divergence: bool,
) -> tuple[Tensor, Tensor | None, list[int]]:
    """Flat log pi and, if asked for, KL(pi_ref || pi) of every token, and the answers' lengths."""
    ids = [bench.ids(*row) for row in zip(prompts, answers, strict=True)]
    (pack,) = pack_trees([each for each, _ in ids], [each for _, each in ids], ONE_PACK)
    extras = (
        Extras(reference=reference_predictions(AdapterOff(policy), pack))
        if divergence
        else NO_EXTRAS
    )
    output: TokenLogps = policy(packed=pack, extras=extras)
    order = torch.tensor(_places(pack.rows, pack.lengths))
    kl = None if output.kl is None else output.kl[order]
    return output.logps[order], kl, [len(answer) for _, answer in ids]


def _places(rows: Sequence[int], lengths: Sequence[int]) -> list[int]:
    """Packed places of all tokens, in the order of the rows."""
    start, found = 0, {}
    for row, length in zip(rows, lengths, strict=True):
        found[row] = range(start, start + length)
        start += length
    return [place for row in sorted(found) for place in found[row]]
