"""Token rewards of a reward model of whole responses: what each further token adds to its score."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from tokenq.credit.sources.language_model import (
    check_one_turn,
    encoded_rows,
    text_of,
    token_scores,
)
from tokenq.credit.sources.scores import RowError, TokenScores
from tokenq.data.encoding import EncodedResponse
from tokenq.data.formats import Messages
from tokenq.errors import UserError
from tokenq.models.forward import causal_lm
from tokenq.models.logps import TOKEN_BUDGET
from tokenq.models.outcome import load_outcome_model
from tokenq.models.outcome_logits import (
    RewardHead,
    continues_text,
    length_batches,
    logits_at_every_position,
    logits_of_whole_texts,
    longest_text,
)
from tokenq.models.reference import scoring

logger = logging.getLogger(__name__)


def open_outcome_model(
    name: str | Path,
    *,
    label: int | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
) -> "OutcomeModel | OutcomeEncoder":
    """The source for a reward model by name: read in one forward, or every prefix by itself.

    label: of a classifier with several labels, the one whose log-odds are the reward

    Raises UserError for a checkpoint without a trained head (see :func:`load_outcome_model`).
    """
    model, tokenizer = load_outcome_model(name, device=device, dtype=dtype)
    reader = OutcomeModel if continues_text(model) else OutcomeEncoder
    return reader(model, tokenizer, label=label, name=f"outcome model ({name})")


class OutcomeModel:
    """r(x, y_<=t) - r(x, y_<t) of a causal reward model, all prefixes in one forward.

    The model is a sequence classifier on a causal backbone: `r` is its `score` head on the state of
    the last token that is not padding, as the model itself takes it. So where the padding token is
    also the end token, the end scores 0: the model never looks at it. Prefixes other than whole
    responses are texts that the model was not trained on. The scores of a response add up to
    r(x, y) - r(x), its own score less that of the prompt alone.

    label: of a classifier with several labels, the one whose log-odds are the reward

    Raises UserError for a model that does not score prefixes in one forward
    (:func:`continues_text`); :class:`OutcomeEncoder` reads those.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        label: int | None = None,
        name: str = "outcome model",
        token_budget: int = TOKEN_BUDGET,
    ) -> None:
        if not continues_text(model):
            raise UserError(
                f"{name}: its head does not score every prefix in one forward; accepted: a "
                "sequence classifier on a causal backbone (OutcomeEncoder re-scores prefixes)"
            )
        self.name = name
        self.model = model
        self._tokenizer = tokenizer
        self._head = RewardHead(int(causal_lm(model).config.num_labels or 1), label)
        self._token_budget = token_budget

    def score(
        self, prompts: Sequence[str | Messages], responses: Sequence[str | Messages]
    ) -> list[TokenScores]:
        """Score responses (see :class:`TokenSource`). Unit: the model's own."""
        longest = longest_text(self.model)
        rows = encoded_rows(self._tokenizer, prompts, responses, longest)
        texts = [[*row.prompt_ids, *row.response_ids] for row in rows]
        scores: list[Tensor] = [torch.empty(0)] * len(rows)
        with scoring(self.model):
            for batch in length_batches(texts, self._token_budget):
                logits = logits_at_every_position(self.model, [texts[number] for number in batch])
                for number, each in zip(batch, logits, strict=True):
                    from_prompt = each[len(rows[number].prompt_ids) - 1 :]
                    scores[number] = self._head.reward(from_prompt).diff()
        return token_scores(rows, responses, scores, self.name, "reward")


class OutcomeEncoder:
    """r(x, y_<=t) - r(x, y_<t) of a reward model that has to read every prefix by itself.

    For bidirectional encoders. Prompt and response are its two texts, joined by the tokenizer; a
    prefix of the response is cut by tokens and closed as the whole is. The closing tokens are part
    of every prefix, so that there is no score of an end; the scores add up to r(x, y) less the
    score of an empty response. A response of T tokens costs T + 1 forwards, batched.

    label: of a classifier with several labels, the one whose log-odds are the reward
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        label: int | None = None,
        name: str = "outcome model",
        token_budget: int = TOKEN_BUDGET,
    ) -> None:
        self.name = name
        self.model = model
        self._tokenizer = tokenizer
        self._head = RewardHead(int(causal_lm(model).config.num_labels or 1), label)
        self._token_budget = token_budget

    def score(
        self, prompts: Sequence[str | Messages], responses: Sequence[str | Messages]
    ) -> list[TokenScores]:
        """Score responses (see :class:`TokenSource`). Unit: the model's own.

        Raises RowError for prompts that are messages: an encoder has no turns.
        """
        if len(prompts) != len(responses):
            raise ValueError(f"{len(prompts)} prompts but {len(responses)} responses")
        pairs = zip(prompts, responses, strict=True)
        texts = [self._encode(number, *pair) for number, pair in enumerate(pairs)]
        with scoring(self.model):
            scores = [self._rewards(text).diff() for text in texts]
        rows = [EncodedResponse(text.ids, text.response_ids, False, text.offsets) for text in texts]
        return token_scores(rows, responses, scores, self.name, "reward")

    def _rewards(self, text: "_TwoTexts") -> Tensor:
        """[T + 1] rewards of the prefixes with 0 to T tokens of the response."""
        prefixes = list(text.prefixes())
        rewards: list[Tensor] = [torch.empty(0)] * len(prefixes)
        for batch in length_batches([ids for ids, _ in prefixes], self._token_budget):
            ids, types = ([prefixes[at][side] for at in batch] for side in (0, 1))
            for at, logits in zip(
                batch, logits_of_whole_texts(self.model, ids, types), strict=True
            ):
                rewards[at] = self._head.reward(logits)
        return torch.cat(rewards)

    def _encode(self, number: int, prompt: str | Messages, response: str | Messages) -> "_TwoTexts":
        if not self._tokenizer.is_fast:
            raise UserError(
                f"the tokenizer of {self.name} gives no character offsets; accepted: a fast "
                "tokenizer (tokenizer.json)"
            )
        check_one_turn(number, response)
        if not isinstance(prompt, str):
            raise RowError(
                number, f"the prompt is messages, {self.name} reads two texts; accepted: text"
            )
        encoding = self._tokenizer(
            prompt, text_of(response), return_offsets_mapping=True, return_token_type_ids=True
        )
        sides = encoding.sequence_ids()
        place = [at for at, side in enumerate(sides) if side == 1]
        if not place:
            raise RowError(number, "the response has no token; accepted: a text that is not empty")
        longest = longest_text(self.model)
        if longest is not None and len(sides) > longest:
            raise RowError(
                number,
                f"prompt and response have {len(sides)} tokens; accepted: {longest}, what the "
                "model reads",
            )
        return _TwoTexts(
            ids=encoding["input_ids"],
            types=encoding["token_type_ids"],
            response=range(place[0], place[-1] + 1),
            offsets=[encoding["offset_mapping"][at] for at in place],
        )


@dataclass(frozen=True)
class _TwoTexts:
    """A joined prompt and response: ids and types of all tokens, where the response's are."""

    ids: list[int]
    types: list[int]
    response: range
    offsets: list[tuple[int, int]]

    @property
    def response_ids(self) -> list[int]:
        return self.ids[self.response.start : self.response.stop]

    def prefixes(self) -> Iterator[tuple[list[int], list[int]]]:
        """Ids and types with the first 0, 1, ... tokens of the response, closed as the whole is."""
        for end in range(self.response.start, self.response.stop + 1):
            yield tuple(  # type: ignore[misc]
                [*each[:end], *each[self.response.stop :]] for each in (self.ids, self.types)
            )
