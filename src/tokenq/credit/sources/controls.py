"""Signals that know nothing of preferences: what credit has to beat on the same text."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedTokenizerBase

from tokenq.credit.sources.language_model import LanguageModel, encoded_rows, token_scores
from tokenq.credit.sources.scores import TokenScores
from tokenq.data.encoding import encode_prompt
from tokenq.data.formats import Messages
from tokenq.errors import UserError
from tokenq.models.vocabulary import check_same_vocabulary


class Surprisal:
    """-log p(y_t | x, y_<t) under one model, nats; higher is more suspicious."""

    def __init__(self, model: LanguageModel, name: str | None = None) -> None:
        self.name = name or f"surprisal ({model.name})"
        self._model = model

    def score(
        self, prompts: Sequence[str | Messages], responses: Sequence[str | Messages]
    ) -> list[TokenScores]:
        """Score responses (see :class:`TokenSource`)."""
        rows = self._model.encode(prompts, responses)
        scores = [-row.logps for row in self._model.predict(rows)]
        return token_scores(rows, responses, scores, self.name, "nats", "suspicious")


class Entropy:
    """Entropy of the distribution that a token was taken from, nats; higher is more suspicious.

    It knows the place, not the token that stands there. Over a stretch it is averaged.
    """

    def __init__(self, model: LanguageModel, name: str | None = None) -> None:
        self.name = name or f"entropy ({model.name})"
        self._model = model

    def score(
        self, prompts: Sequence[str | Messages], responses: Sequence[str | Messages]
    ) -> list[TokenScores]:
        """Score responses (see :class:`TokenSource`)."""
        rows = self._model.encode(prompts, responses)
        scores = [row.entropy for row in self._model.predict(rows)]
        return token_scores(rows, responses, scores, self.name, "nats", "suspicious", False)


class Contrast:
    """log p(y_t) - log p_other(y_t), nats; higher is liked.

    Two models of which neither was trained on preferences (a fine-tuned model and its base, a large
    and a small one) tell how much of a log-ratio is fluency. The implicit reward is this with a
    preference-trained policy and its reference, times beta.

    Raises UserError, naming a token, where the two do not share their vocabulary.
    """

    def __init__(self, model: LanguageModel, other: LanguageModel, name: str | None = None) -> None:
        check_same_vocabulary(model.tokenizer, other.tokenizer, model.name, other.name)
        self.name = name or f"contrast ({model.name} - {other.name})"
        self._model = model
        self._other = other

    def score(
        self, prompts: Sequence[str | Messages], responses: Sequence[str | Messages]
    ) -> list[TokenScores]:
        """Score responses (see :class:`TokenSource`)."""
        rows = self._model.encode(prompts, responses, self._other)
        both = zip(self._model.predict(rows), self._other.predict(rows), strict=True)
        scores = [ours.logps - theirs.logps for ours, theirs in both]
        return token_scores(rows, responses, scores, self.name, "nats")


class PromptInformation:
    """log p(y_t | x, y_<t) - log p(y_t | y_<t): how much the prompt says for a token, nats.

    The pointwise mutual information of prompt and token, given what came before: surprisal without
    the prompt minus surprisal with it. Higher is liked; what the prompt speaks against is below 0.
    The response's token ids are the same in both readings.

    without: what stands in place of the prompt. By default nothing but BOS for a text prompt, and
             an empty user message for messages
    """

    def __init__(
        self,
        model: LanguageModel,
        without: str | Messages | None = None,
        name: str | None = None,
    ) -> None:
        self.name = name or f"prompt information ({model.name})"
        self._model = model
        self._without = without

    def score(
        self, prompts: Sequence[str | Messages], responses: Sequence[str | Messages]
    ) -> list[TokenScores]:
        """Score responses (see :class:`TokenSource`).

        Raises UserError as well where the tokenizer has no BOS token to put in a prompt's place.
        """
        rows = self._model.encode(prompts, responses)
        alone = [
            replace(row, prompt_ids=self._empty(prompt))
            for row, prompt in zip(rows, prompts, strict=True)
        ]
        both = zip(self._model.predict(rows), self._model.predict(alone), strict=True)
        scores = [informed.logps - blind.logps for informed, blind in both]
        return token_scores(rows, responses, scores, self.name, "nats")

    def _empty(self, prompt: str | Messages) -> list[int]:
        without = self._without
        if without is None:
            without = "" if isinstance(prompt, str) else [{"role": "user", "content": ""}]
        try:
            return encode_prompt(self._model.tokenizer, without)
        except UserError as error:
            raise UserError(f"{self.name}: {error}; accepted: without=, a text or messages") from (
                error
            )


class Position:
    """Number of tokens of the response before this one; higher is more suspicious.

    Over a stretch it is averaged.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str = "position") -> None:
        self.name = name
        self._tokenizer = tokenizer

    def score(
        self, prompts: Sequence[str | Messages], responses: Sequence[str | Messages]
    ) -> list[TokenScores]:
        """Score responses (see :class:`TokenSource`); no model is run."""
        rows = encoded_rows(self._tokenizer, prompts, responses)
        scores = [torch.arange(len(row.response_ids)) for row in rows]
        return token_scores(rows, responses, scores, self.name, "tokens", "suspicious", False)


class Length:
    """Characters of a token other than blanks; higher is more suspicious.

    Characters add up: over a word it is the word's length.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str = "length") -> None:
        self.name = name
        self._tokenizer = tokenizer

    def score(
        self, prompts: Sequence[str | Messages], responses: Sequence[str | Messages]
    ) -> list[TokenScores]:
        """Score responses (see :class:`TokenSource`); no model is run."""
        rows = encoded_rows(self._tokenizer, prompts, responses)
        found = token_scores(
            rows,
            responses,
            [torch.zeros(len(row.response_ids)) for row in rows],
            self.name,
            "characters",
            "suspicious",
        )
        return [replace(each, scores=_visible(each)) for each in found]


def _visible(scores: TokenScores) -> torch.Tensor:
    """Characters other than blanks of each token; those that tokens share are divided."""
    tokens = [scores.text[start:end] for start, end in scores.offsets]
    counts = [len("".join(token.split())) for token in tokens]
    sharing = Counter(scores.offsets)
    shares = [count / sharing[at] for count, at in zip(counts, scores.offsets, strict=True)]
    return torch.tensor(shares)
