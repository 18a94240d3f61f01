"""The prober: opened with the reference when a run starts, then reads the policy at its steps.

What a reading holds is said in `monitor.readings`; when to take one is not decided here.
"""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from tokenq.errors import UserError
from tokenq.models.forward import causal_lm, embedding_weight, response_hidden
from tokenq.models.head import Head
from tokenq.models.logps import TOKEN_BUDGET
from tokenq.models.reference import AdapterOff, scoring
from tokenq.monitor.borrowing import borrowed
from tokenq.monitor.distributions import Distributions, distributions
from tokenq.monitor.forks import moved_mass
from tokenq.monitor.probe_texts import ProbeRows, Rows, new_tokens_for
from tokenq.monitor.readings import (
    Array,
    Baseline,
    ForkReading,
    Gain,
    PairReading,
    ProbePair,
    ProbeSet,
    Reading,
    ResponseReading,
    SampleReading,
    Setup,
)
from tokenq.monitor.reference_states import ReferenceStates
from tokenq.monitor.samples import (
    Drawing,
    Embed,
    WordVectors,
    context_of,
    draw,
    likeness,
    repetition,
    seed_of,
)
from tokenq.monitor.similarity import head_gradients, state_similarity


@dataclass(frozen=True)
class ProbeOptions:
    """What a probe reads; its cost is that of a forward over all these texts.

    held_out:     pairs that training does not see
    trained:      pairs that it does
    responses:    responses of the reference, in turn to the held-out prompts (to training prompts
                  where there are no others)
    samples:      responses of the policy in a reading with samples
    new_tokens:   most tokens of a response; None: twice what nine of ten answers keep to, from 8
                  to 128
    gains:        most tokens to tell of each fork
    gradients:    whether to compute products of the head's gradients
    seed:         of all that is drawn
    token_budget: input tokens of one forward; bounds memory
    """

    held_out: int = 32
    trained: int = 32
    responses: int = 32
    samples: int = 16
    new_tokens: int | None = None
    gains: int = 5
    gradients: bool = True
    seed: int = 0
    token_budget: int = TOKEN_BUDGET

    def __post_init__(self) -> None:
        least = {"new_tokens": 1, "token_budget": 1}
        names = ("held_out", "trained", "responses", "samples", "gains", "seed")
        for name, fewest in (dict.fromkeys(names, 0) | least).items():
            value = getattr(self, name)
            if name == "new_tokens" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < fewest:
                raise UserError(f"{name} is {value!r}; accepted: a whole number from {fewest}")


class Prober:
    """Reads a policy on a fixed probe, beside what the reference said at the start.

    probe:    the texts
    baseline: the reference's view of them
    """

    def __init__(
        self,
        probe: ProbeSet,
        baseline: Baseline,
        reference: ReferenceStates,
        end_ids: Collection[int],
        options: ProbeOptions,
        embed: Embed | None,
    ) -> None:
        self.probe = probe
        self.baseline = baseline
        self._reference = reference
        self._options = options
        self._rows = ProbeRows(probe, end_ids)
        self._embed = embed or _word_vectors(reference, probe.pairs)

    @classmethod
    def open(
        cls,
        reference: nn.Module | AdapterOff,
        held_out: Sequence[ProbePair],
        trained: Sequence[ProbePair],
        end_ids: Collection[int],
        options: ProbeOptions | None = None,
        *,
        embed: Embed | None = None,
    ) -> Self:
        """Let the reference write its responses and read all texts of the probe once.

        reference: what implicit rewards are measured against; in full fine-tuning the policy before
                   its first step will do. One whose weights cannot be trained is kept, to read the
                   policy's samples: it must not be changed in place. Of one that can be trained
                   only states and a copy of its head are kept, and samples have no log-ratios.
        end_ids:   ids of end tokens
        embed:     vectors of texts for `likeness`; None: their words, see `WordVectors`

        The model is left as it was; so are the states of all random numbers. Forwards run in the
        precision that the caller has entered (`torch.autocast`), to be the same at every reading.
        Raises UserError where there is no pair at all.
        """
        options = options or ProbeOptions()
        pairs = [*held_out, *trained]
        _check(pairs)
        room = context_of(reference)
        new_tokens = options.new_tokens or new_tokens_for(pairs)
        if room is not None:
            new_tokens = max(1, min(new_tokens, room - min(len(pair.prompt) for pair in pairs)))
        with borrowed(reference):
            law = Drawing(new_tokens, tuple(end_ids), options.seed, options.token_budget)
            responses = draw(reference, pairs, options.responses, law)
            probe = ProbeSet(pairs, responses, new_tokens)
            return cls.on(probe, reference, end_ids, options, embed=embed)

    @classmethod
    def on(
        cls,
        probe: ProbeSet,
        reference: nn.Module | AdapterOff,
        end_ids: Collection[int],
        options: ProbeOptions | None = None,
        *,
        embed: Embed | None = None,
    ) -> Self:
        """Open a prober on texts that are there already, responses of this reference among them.

        Arguments as in :meth:`open`.
        """
        options = options or ProbeOptions()
        _check(probe.pairs)
        rows = ProbeRows(probe, end_ids)
        with borrowed(reference):
            hidden = _hidden(reference, rows, options.token_budget)
            states = ReferenceStates.of(reference, hidden)
            found = distributions(states.head, hidden, rows.tokens)
        embed = embed or _word_vectors(states, probe.pairs)
        baseline = _baseline(rows, hidden, found, embed)
        return cls(probe, baseline, states, end_ids, options, embed)

    def read(
        self, policy: nn.Module, step: int, *, samples: bool = False, epoch: float | None = None
    ) -> Reading:
        """Read the policy after `step` optimiser steps; `samples`: let it write some as well.

        Without gradient or dropout; afterwards the policy, its training flags and the states of all
        random numbers are as before. The samples depend on (seed, step) and on the policy only.
        """
        began = time.perf_counter()
        with borrowed(policy):
            with scoring(policy) as model:
                hidden = _hidden(model, self._rows, self._options.token_budget)
                head = Head.of(causal_lm(model))
                reference = self._reference.predictions()
                found = distributions(head, hidden, self._rows.tokens, reference)
                pairs = self._pairs(head, hidden, found)
                forks = self._forks(head, hidden, found)
            drawn = self._samples(policy, step) if samples and self._options.samples else None
        return Reading(
            step,
            pairs,
            forks,
            self._responses(found),
            drawn,
            epoch,
            seconds=time.perf_counter() - began,
        )

    def save(self, folder: Path) -> None:
        """Write to `folder` what a resumed run needs besides its `Setup`."""
        self._reference.save(folder)

    @classmethod
    def load(
        cls,
        folder: Path,
        setup: Setup,
        policy: nn.Module,
        options: ProbeOptions | None = None,
        *,
        reference: nn.Module | AdapterOff | None = None,
        embed: Embed | None = None,
    ) -> Self:
        """Open the prober of a run that is resumed; its readings go on as if it had not stopped.

        reference: as in :meth:`open`, where the run has it still; it is not read again, other than
                   for samples

        Raises UserError for a folder without the reference's states, or with those of another run.
        """
        states = ReferenceStates.load(folder, policy, reference)
        tokens = len(ProbeRows(setup.probe, setup.end_ids).tokens)
        if len(states.hidden) != tokens:
            raise UserError(
                f"{folder}: holds a reference's states at {len(states.hidden)} tokens, the probe "
                f"has {tokens}; accepted: files of one run"
            )
        options = options or ProbeOptions()
        return cls(setup.probe, setup.baseline, states, setup.end_ids, options, embed)

    def _pairs(self, head: Head, hidden: Tensor, found: Distributions) -> PairReading:
        rows = self._rows
        return PairReading(
            logps=rows.of_parts(found.logps),
            divergence=rows.of_sides(rows.sums(found.divergence)),
            entropy=rows.of_sides(rows.means(found.entropy)),
            peak=rows.of_sides(rows.means(found.peak)),
            collision=rows.of_sides(rows.means(found.collision)),
            taken=rows.of_sides(rows.means(found.taken)),
            gradients=self._gradients(head, hidden) if self._options.gradients else None,
        )

    def _gradients(self, head: Head, hidden: Tensor) -> Array:
        columns = []
        with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
            for number, pair in enumerate(self.probe.pairs):
                ours, theirs = (hidden[self._rows.span(2 * number + side)] for side in (0, 1))
                found = head_gradients(head, (ours, pair.chosen), (theirs, pair.rejected))
                columns.append((found.chosen, found.rejected, found.product))
        return np.array(columns).T

    def _forks(self, head: Head, hidden: Tensor, found: Distributions) -> ForkReading:
        count, forked, at = len(self.probe.pairs), self._rows.forked, self._rows.fork_positions
        logps, other, toward = _nans(2, count), _nans(count), _nans(count)
        gains: list[list[Gain]] = [[] for _ in range(count)]
        if forked:
            states = torch.from_numpy(at[0])
            moved = moved_mass(
                head,
                hidden[states.to(hidden.device)],
                self._reference.predictions(states),
                torch.tensor(self._rows.tokens)[torch.from_numpy(at)].T,
                self._reference.table,
                self._options.gains,
            )
            logps[:, forked] = found.logps[at]
            other[forked], toward[forked] = moved.other, moved.toward
            for number, row in zip(forked, moved.gains, strict=True):
                gains[number] = row
        return ForkReading(logps, other, toward, gains)

    def _responses(self, found: Distributions) -> ResponseReading:
        rows = self._rows
        return ResponseReading(
            log_ratio=rows.of_responses(rows.sums(found.logps)) - self.baseline.response_logps,
            divergence=rows.of_responses(rows.sums(found.divergence)),
            reverse=rows.of_responses(rows.sums(found.reverse)),
            entropy=rows.of_responses(rows.means(found.entropy)),
        )

    def _samples(self, policy: nn.Module, step: int) -> SampleReading:
        options, pairs = self._options, self.probe.pairs
        law = Drawing(
            self.probe.new_tokens,
            tuple(self._rows.ends),
            seed_of(options.seed, step),
            options.token_budget,
        )
        drawn = draw(policy, pairs, options.samples, law)
        rows = Rows([pairs[each.pair].prompt for each in drawn], [each.ids for each in drawn])
        log_ratio, divergence = _nans(len(drawn)), _nans(len(drawn))
        reference = self._reference.model
        if drawn and reference is not None:
            with borrowed(reference):
                theirs = _hidden(reference, rows, options.token_budget)
            with scoring(policy) as model:
                hidden = _hidden(model, rows, options.token_budget)
                head = Head.of(causal_lm(model))
                found = distributions(head, hidden, rows.tokens, self._reference.at(theirs))
            log_ratio = rows.sums(found.logps - found.ref_logps)
            divergence = rows.sums(found.reverse)
        return SampleReading(
            pair=np.array([each.pair for each in drawn], dtype=np.float64),
            ids=[each.ids for each in drawn],
            ended=np.array([each.ended for each in drawn], dtype=np.float64),
            repetition=np.array([repetition(each.ids) for each in drawn]),
            log_ratio=log_ratio,
            divergence=divergence,
            likeness=likeness(self._embed, pairs, drawn),
        )


def _baseline(rows: ProbeRows, hidden: Tensor, found: Distributions, embed: Embed) -> Baseline:
    pairs, responses = rows.probe.pairs, rows.probe.responses
    alike = [
        state_similarity(hidden[rows.span(2 * number)], hidden[rows.span(2 * number + 1)])
        for number in range(len(pairs))
    ]
    ref_fork = _nans(2, len(pairs))
    ref_fork[:, rows.forked] = found.logps[rows.fork_positions]
    return Baseline(
        tokens=rows.of_parts(np.ones(len(rows.tokens))),
        ref_logps=rows.of_parts(found.logps),
        ref_entropy=rows.of_sides(rows.means(found.entropy)),
        ref_peak=rows.of_sides(rows.means(found.peak)),
        ref_collision=rows.of_sides(rows.means(found.collision)),
        ref_taken=rows.of_sides(rows.means(found.taken)),
        ches=np.array([each.ches for each in alike]),
        ches_normalised=np.array([each.ches_normalised for each in alike]),
        ref_fork=ref_fork,
        response_tokens=rows.of_responses(rows.lengths.astype(np.float64)),
        response_logps=rows.of_responses(rows.sums(found.logps)),
        response_entropy=rows.of_responses(rows.sums(found.entropy)),
        ref_likeness=likeness(embed, pairs, responses),
        ref_repetition=np.array([repetition(each.ids) for each in responses]),
    )


def _hidden(model: nn.Module | AdapterOff, rows: Rows, token_budget: int) -> Tensor:
    """The states [P, H] that the tokens of `rows` are predicted from."""
    with scoring(model) as active:
        states = torch.cat(response_hidden(active, rows.prompts, rows.answers, token_budget))
        # Mixed precision may leave them in half, and the head is read without it.
        return states.to(embedding_weight(causal_lm(active)).dtype)


def _word_vectors(reference: ReferenceStates, pairs: Sequence[ProbePair]) -> WordVectors:
    answers = [answer for pair in pairs for answer in (pair.chosen, pair.rejected)]
    return WordVectors(reference.table, answers)


def _check(pairs: Sequence[ProbePair]) -> None:
    if not pairs:
        raise UserError("the probe has no pairs; accepted: at least one held-out or training pair")
    for pair in pairs:
        if not (len(pair.prompt) and len(pair.chosen) and len(pair.rejected)):
            raise UserError(
                f"the probe's {pair.source} pair {pair.row} has an empty text; accepted: prompt, "
                "chosen and rejected of at least one token each"
            )


def _nans(*shape: int) -> Array:
    return np.full(shape, np.nan)
