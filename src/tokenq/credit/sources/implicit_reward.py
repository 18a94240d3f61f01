"""The implicit reward of a policy against its reference, also read by a pair of another family."""

from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from tokenq.credit.api import credit
from tokenq.credit.estimators import estimator as estimator_of
from tokenq.credit.sources.language_model import (
    LanguageModel,
    encoded_rows,
    text_of,
    token_scores,
)
from tokenq.credit.sources.projection import project
from tokenq.credit.sources.scores import RowError, TokenScores, TokenSource
from tokenq.data.formats import Messages
from tokenq.models.pair import Pair, context_length, reference_of


class ImplicitReward:
    """beta * (log pi - log pi_ref) of each token: `Credit.rewards` of a batch, nothing else.

    A PEFT policy whose pair names no other reference is measured against its base, the adapter
    switched off. A verifier trained with the outcome loss `implicit_prm` is a pair as well: its
    prefix sums are the soft values of the outcome (2412.01981, Prop. 3.1), and these are their
    differences.

    beta: the KL penalty that the policy was trained with
    """

    def __init__(self, pair: Pair, beta: float = 0.1, name: str = "implicit reward") -> None:
        self.name = name
        self._beta = beta
        self._policy = LanguageModel.policy_of(pair)
        self._reference = LanguageModel.reference_of(pair)

    def score(
        self, prompts: Sequence[str | Messages], responses: Sequence[str | Messages]
    ) -> list[TokenScores]:
        """Score responses (see :class:`TokenSource`). Unit: beta times nats."""
        rows = self._policy.encode(prompts, responses, self._reference)
        both = zip(self._policy.predict(rows), self._reference.predict(rows), strict=True)
        rewards = [self._beta * (ours.logps - theirs.logps) for ours, theirs in both]
        return token_scores(rows, responses, rewards, self.name, "beta x nats")


class Estimated:
    """An estimator of token credit (:data:`ESTIMATORS`) as a source, one response at a time.

    beta: the KL penalty that the policy was trained with

    Raises UserError for an unknown estimator and for a pair without a reference.
    """

    def __init__(
        self, pair: Pair, estimator: str, beta: float = 0.1, name: str | None = None
    ) -> None:
        known = estimator_of(estimator)
        reference_of(pair)
        self.name = name or f"implicit reward, {known.name}"
        self._pair = pair
        self._beta = beta
        self._estimator = known
        # What is already one number a word, or a number of deviations, does not add up.
        self._additive = not known.name.endswith("_words") and known.name not in (
            "words",
            "standardised",
        )

    def score(
        self, prompts: Sequence[str | Messages], responses: Sequence[str | Messages]
    ) -> list[TokenScores]:
        """Score responses (see :class:`TokenSource`). Unit: beta times nats, or deviations."""
        encoded_rows(self._pair.tokenizer, prompts, responses, context_length(self._pair))
        unit = "deviations" if self._estimator.name.startswith("standardised") else "beta x nats"
        found = []
        for prompt, response in zip(prompts, responses, strict=True):
            read = credit(self._pair, prompt, response, self._beta)
            found.append(
                TokenScores(
                    text=text_of(response),
                    offsets=tuple(read.offsets),
                    scores=self._estimator.read(read).detach().float().cpu(),
                    name=self.name,
                    unit=unit,
                    additive=self._additive,
                )
            )
        return found


class Oracle:
    """A source that reads with its own tokenizer, reported on the tokens of another model.

    A small policy and its reference score the text of a larger model so: what they say of their own
    tokens is moved by characters (:func:`project`); the same tokenizer moves nothing.

    tokenizer: of the model whose tokens are reported
    """

    def __init__(
        self, source: TokenSource, tokenizer: PreTrainedTokenizerBase, name: str | None = None
    ) -> None:
        self.name = name or f"{source.name}, oracle"
        self._source = source
        self._tokenizer = tokenizer

    def score(
        self, prompts: Sequence[str | Messages], responses: Sequence[str | Messages]
    ) -> list[TokenScores]:
        """Score responses (see :class:`TokenSource`), in the unit of the source."""
        rows = encoded_rows(self._tokenizer, prompts, responses)
        found = self._source.score(prompts, responses)
        return [
            replace(_moved(number, each, tuple(row.offsets)), name=self.name)
            for number, (each, row) in enumerate(zip(found, rows, strict=True))
        ]


def _moved(number: int, scores: TokenScores, offsets: tuple[tuple[int, int], ...]) -> TokenScores:
    try:
        return project(scores, offsets)
    except ValueError as error:
        raise RowError(number, str(error)) from error
