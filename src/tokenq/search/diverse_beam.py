"""Diverse beam search: groups of beams that keep out of each other's way.

Vijayakumar et al., "Diverse Beam Search" (arXiv 1610.02424), with the Hamming penalty, as
`transformers` had it as group beam search.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Unpack

from tokenq.errors import UserError
from tokenq.search.beam import BeamOptions, EarlyStopping, check_width, search_groups
from tokenq.search.decoding import Decoding, DecodingOptions, at_least, whole
from tokenq.search.results import SearchResults
from tokenq.search.running import Batch, Found, run
from tokenq.search.scores import Score
from tokenq.search.target import Given, Prompt, Target


@dataclass(frozen=True)
class DiverseBeamOptions:
    """What decides a diverse beam search; see :func:`diverse_beam_search`.

    group: the beam search of each group
    """

    num_beams: int
    num_beam_groups: int
    diversity_penalty: float
    group: BeamOptions
    num_return_sequences: int | None = None

    def __post_init__(self) -> None:
        wanted = self.num_return_sequences
        if wanted is not None and wanted not in range(1, self.num_beams + 1):
            raise UserError(
                f"num_return_sequences is {wanted}; accepted: 1 to {self.num_beams}, the number of "
                "beams"
            )
        at_least("diversity_penalty", self.diversity_penalty, 0)


def diverse_beam_search(
    pair_or_model: Given,
    prompts: Sequence[Prompt],
    num_beams: int = 6,
    max_new_tokens: int = 64,
    score: Score | str | float = "likelihood",
    *,
    num_beam_groups: int = 3,
    diversity_penalty: float = 0.5,
    length_penalty: float = 1.0,
    early_stopping: EarlyStopping = False,
    num_return_sequences: int | None = None,
    plausibility: float = 0.0,
    **decoding: Unpack[DecodingOptions],
) -> SearchResults:
    """Return the responses that groups of beams find for each prompt, best first.

    pair_or_model:        a pair; a bare model, for prompts that are lists of token ids; or
                          {"policy": model, "reference": model}
    prompts:              texts, lists of messages, or lists of token ids
    num_beams:            of all groups together
    score:                "likelihood", "log_ratio" (needs a reference), or a number between; see
                          :func:`beam_search`
    num_beam_groups:      number of groups; divides num_beams. 1 is beam search
    diversity_penalty:    what a token costs a group, in nats, for each beam of the earlier groups
                          that goes on by the same token at the same step. 0: all groups are alike
    length_penalty:       a response of n tokens is ranked by its score / n ** length_penalty
    early_stopping:       of each group, as in :func:`beam_search`
    num_return_sequences: how many of the `num_beams` responses are returned; all if None
    plausibility:         only tokens of at least so many times the probability of the likeliest
    decoding:             see :class:`Decoding`

    A result's score holds the penalties that its tokens were charged, as in the group beam search
    that `transformers` had; its logps do not. details["group"] is its group, from 0. The penalty
    comes after processors. Raises UserError for options out of range and prompts that the models
    cannot read.
    """
    options = _options(
        num_beams,
        num_beam_groups,
        diversity_penalty,
        BeamOptions(1, Score.of(score), length_penalty, early_stopping, None, plausibility),
        num_return_sequences,
    )
    settings = Decoding(max_new_tokens=max_new_tokens, **decoding)
    target = Target.of(pair_or_model, with_reference=options.group.score.needs_reference)
    check_width(target, options.group.num_beams, max_new_tokens)
    return run(target, prompts, settings, lambda batch: _search(batch, options))


def _options(
    num_beams: int,
    num_beam_groups: int,
    diversity_penalty: float,
    group: BeamOptions,
    num_return_sequences: int | None,
) -> DiverseBeamOptions:
    whole("num_beams", num_beams, 1)
    if num_beam_groups not in range(1, num_beams + 1) or num_beams % num_beam_groups:
        raise UserError(
            f"num_beam_groups is {num_beam_groups}; accepted: a divisor of num_beams, {num_beams}"
        )
    width = num_beams // num_beam_groups
    return DiverseBeamOptions(
        num_beams,
        num_beam_groups,
        diversity_penalty,
        replace(group, num_beams=width),
        num_return_sequences,
    )


def _search(batch: Batch, options: DiverseBeamOptions) -> list[list[Found]]:
    limit = options.num_return_sequences or options.num_beams
    ranked = []
    for groups in search_groups(
        batch, options.group, options.num_beam_groups, options.diversity_penalty
    ):
        found = [
            replace(each, details={**each.details, "group": float(number)})
            for number, whole in enumerate(groups)
            for _, each in whole
        ]
        ranked.append(sorted(found, key=lambda each: -each.score)[:limit])
    return ranked
