"""References beside a plain model: constants, a model without the prompt, a mean of several.

They are compared in "Understanding Reference Policies in DPO" (arXiv 2407.13709).
"""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tokenq.models.reference import ReferenceIdentity
from tokenq.training.config import PreferenceConfig
from tokenq.training.reference import Ids, Reference


class ConstantReference:
    """The same log-probability for every token; needs no model.

    0 is the counting measure: the implicit reward of a response is beta * log pi(y | x), which the
    paper calls the probability reward. -log V is the uniform distribution over V tokens: then beta
    weighs the policy's entropy. The two differ by a term in the length alone, so that DPO sees no
    difference between responses of one length.
    """

    def __init__(self, name: str, log_prob: float) -> None:
        self.identity = ReferenceIdentity(
            name=name,
            revision=None,
            weight_hash=f"constant {log_prob:.9g}",
            dtype="float32",
            probe=(round(log_prob, 6),),
        )
        self._log_prob = log_prob

    @classmethod
    def counting(cls) -> "ConstantReference":
        """Log-probability 0 for every token."""
        return cls("none", 0.0)

    @classmethod
    def uniform(cls, tokens: int) -> "ConstantReference":
        """Log-probability -log(tokens), `tokens` being the width of the policy's softmax."""
        return cls(f"uniform over {tokens} tokens", -math.log(tokens))

    def fill(self, prompts: list[Ids], responses: list[Ids], args: PreferenceConfig) -> None:
        """Nothing to do ahead of time."""

    def logps(self, prompts: list[Ids], responses: list[Ids]) -> list[Tensor]:
        """See :class:`Reference`."""
        return [torch.full((len(response),), self._log_prob) for response in responses]

    def release_policy(self) -> None:
        """Nothing to do: it holds no model."""


class MarginalReference:
    """Another reference, shown the response without its prompt: p(y) instead of p(y | x).

    The implicit reward is then beta * log p(x | y) up to a constant of x, by Bayes' rule, where the
    policy is p(y | x): the likelihood reward of arXiv 2407.13709, section 5. The response follows
    `start`, a single token; its ids are those that it has after the prompt.
    """

    def __init__(self, inner: Reference, start: int) -> None:
        known = inner.identity
        self.identity = ReferenceIdentity(
            name=f"marginal of {known.name or 'an unnamed model'}",
            revision=known.revision,
            weight_hash=f"{known.weight_hash} after token {start}",
            dtype=known.dtype,
            probe=known.probe,
        )
        self._inner = inner
        self._start = start

    def fill(self, prompts: list[Ids], responses: list[Ids], args: PreferenceConfig) -> None:
        """See :class:`Reference`."""
        self._inner.fill(self._starts(responses), responses, args)

    def logps(self, prompts: list[Ids], responses: list[Ids]) -> list[Tensor]:
        """See :class:`Reference`."""
        return self._inner.logps(self._starts(responses), responses)

    def release_policy(self) -> None:
        """See :class:`Reference`."""
        self._inner.release_policy()

    def _starts(self, responses: list[Ids]) -> list[Ids]:
        return [[self._start] for _ in responses]


class MixtureReference:
    """The arithmetic mean, token by token, of the probabilities that several references give.

    log((p_1(y_t | x, y_<t) + ... + p_K(y_t | x, y_<t)) / K), which is again a distribution over the
    next token. A reference that is named twice counts twice.
    """

    def __init__(self, parts: Sequence[Reference]) -> None:
        self._parts = parts
        known = [part.identity for part in parts]
        hashes = sorted(identity.weight_hash for identity in known)
        names = ", ".join(identity.name or "an unnamed model" for identity in known)
        lengths = min(len(identity.probe) for identity in known)
        probe = _mean_probability([torch.tensor(i.probe[:lengths]) for i in known])
        self.identity = ReferenceIdentity(
            name=f"mean of {names}",
            revision=None,
            weight_hash=hashlib.blake2b(repr(hashes).encode(), digest_size=16).hexdigest(),
            dtype="+".join(sorted({identity.dtype for identity in known})),
            probe=tuple(round(value, 6) for value in probe.tolist()),
        )

    def fill(self, prompts: list[Ids], responses: list[Ids], args: PreferenceConfig) -> None:
        """See :class:`Reference`."""
        for part in self._parts:
            part.fill(prompts, responses, args)

    def logps(self, prompts: list[Ids], responses: list[Ids]) -> list[Tensor]:
        """See :class:`Reference`."""
        each = [part.logps(prompts, responses) for part in self._parts]
        device = each[0][0].device
        return [
            _mean_probability([row.to(device) for row in rows]) for rows in zip(*each, strict=True)
        ]

    def release_policy(self) -> None:
        """See :class:`Reference`."""
        for part in self._parts:
            part.release_policy()


def _mean_probability(log_probs: Sequence[Tensor]) -> Tensor:
    stacked = torch.stack([values.float() for values in log_probs])
    return stacked.logsumexp(0) - math.log(len(log_probs))
