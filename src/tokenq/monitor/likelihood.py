"""Where in an answer its likelihood changed: shared beginning, first difference, the rest, the end.

Pure functions of token ids and log-probabilities; what computes these is elsewhere.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenq.models.packing import Ids

PARTS = ("shared", "first", "later", "end")
"""Parts of an answer beside another one to the same prompt.

shared: tokens that both begin with; first: the first that differs; later: what follows it; end: the
end token, wherever it stands. Preference training pushes on the difference of the two answers, in
which the shared tokens cancel: what happens to them is a side effect.
"""


@dataclass(frozen=True)
class LikelihoodSplit:
    """One answer's log-probabilities by part; sums over the part's tokens, nats.

    tokens:    part -> number of tokens
    logps:     part -> under the policy
    ref_logps: part -> under the reference
    """

    tokens: Mapping[str, int]
    logps: Mapping[str, float]
    ref_logps: Mapping[str, float]

    def rewards(self, beta: float) -> dict[str, float]:
        """Implicit reward by part, beta times nats; they add up to the answer's."""
        return {part: beta * (self.logps[part] - self.ref_logps[part]) for part in PARTS}


def answer_parts(answer: Ids, other: Ids, ends: Collection[int]) -> list[int]:
    """For each token of `answer` the number of its part in :data:`PARTS`, given the `other` answer.

    ends: ids of end tokens; only the last token of an answer counts as its end
    """
    shared = 0
    for ours, theirs in zip(answer, other, strict=False):
        if ours != theirs:
            break
        shared += 1
    parts = [0] * min(shared, len(answer))
    if shared < len(answer):
        parts += [1] + [2] * (len(answer) - shared - 1)
    if len(answer) and answer[-1] in ends:
        parts[-1] = 3
    return parts


def likelihood_split(logps: Tensor, ref_logps: Tensor, parts: Sequence[int]) -> LikelihoodSplit:
    """Sum log-probabilities [T] under policy and reference by part (:func:`answer_parts`)."""
    index = torch.tensor(parts, dtype=torch.long)

    def sums(values: Tensor) -> dict[str, float]:
        totals = torch.zeros(len(PARTS), dtype=torch.float64)
        totals.index_add_(0, index, values.detach().double().cpu())
        return dict(zip(PARTS, totals.tolist(), strict=True))

    counts = torch.bincount(index, minlength=len(PARTS)).tolist()
    return LikelihoodSplit(dict(zip(PARTS, counts, strict=True)), sums(logps), sums(ref_logps))
