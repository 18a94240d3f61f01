"""A causal language model as the reader of given texts; sources on the same model share a forward.

What is here is encoding, length checks and the forward; what the numbers mean is in the sources.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from tokenq.credit.sources.scores import Direction, RowError, TokenScores
from tokenq.data.encoding import EncodedResponse, encode
from tokenq.data.formats import Messages
from tokenq.errors import UserError
from tokenq.models.forward import causal_lm
from tokenq.models.head import TokenLogps
from tokenq.models.logps import TOKEN_BUDGET, token_predictions
from tokenq.models.pair import Pair, reference_of
from tokenq.models.reference import AdapterOff, scoring

_Rows = tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]

_kept: ContextVar[dict[tuple[Any, ...], list[TokenLogps]] | None] = ContextVar(
    "_kept", default=None
)


@contextmanager
def shared_forwards() -> Iterator[None]:
    """Within, the same rows are run through the same model once, whichever source asks.

    For a moment in which no weight changes: nothing is kept beyond it.
    """
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A model with its tokenizer and the name that tables show.

    token_budget: input tokens of one forward; bounds memory, does not change a score
    """

    model: nn.Module | AdapterOff
    tokenizer: PreTrainedTokenizerBase
    name: str
    token_budget: int = TOKEN_BUDGET

    @classmethod
    def policy_of(cls, pair: Pair) -> "LanguageModel":
        """The policy; a pair without a reference will do."""
        return cls(pair.policy, pair.tokenizer, pair.policy_name)

    @classmethod
    def reference_of(cls, pair: Pair) -> "LanguageModel":
        """The reference. Raises UserError where there is none."""
        return cls(reference_of(pair), pair.tokenizer, pair.reference_name or "the reference")

    @property
    def longest(self) -> int | None:
        """The most tokens that the model can read, or None where it does not say."""
        inner = self.model.peft_model if isinstance(self.model, AdapterOff) else self.model
        config = causal_lm(inner).config.get_text_config()
        longest: int | None = getattr(config, "max_position_embeddings", None)
        return longest

    def encode(
        self,
        prompts: Sequence[str | Messages],
        responses: Sequence[str | Messages],
        *others: "LanguageModel",
    ) -> list[EncodedResponse]:
        """Tokenise rows that this model and `others` are to read.

        Raises RowError as :meth:`TokenSource.score` does.
        """
        limits = [each.longest for each in (self, *others)]
        longest = min((limit for limit in limits if limit), default=None)
        return encoded_rows(self.tokenizer, prompts, responses, longest)

    def predict(self, rows: Sequence[EncodedResponse]) -> list[TokenLogps]:
        """Log-probabilities, logits and entropies of encoded responses, fields [T_i], no grad."""
        ids: _Rows = tuple((tuple(row.prompt_ids), tuple(row.response_ids)) for row in rows)
        kept = _kept.get()
        key = (*_identity(self.model), ids)
        if kept is not None and key in kept:
            return kept[key]
        with scoring(self.model) as model:
            found = token_predictions(
                model,
                [prompt for prompt, _ in ids],
                [response for _, response in ids],
                token_budget=self.token_budget,
            )
        if kept is not None:
            kept[key] = found
        return found


def encoded_rows(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Messages],
    responses: Sequence[str | Messages],
    longest: int | None = None,
) -> list[EncodedResponse]:
    """Tokenise rows of at most `longest` tokens.

    Raises RowError, also for an answer of several messages, ValueError for lists of different
    lengths.
    """
    if len(prompts) != len(responses):
        raise ValueError(f"{len(prompts)} prompts but {len(responses)} responses")
    rows = []
    for number, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        check_one_turn(number, response)
        try:
            row = encode(tokenizer, prompt, response)
        except UserError as error:
            raise RowError(number, str(error)) from error
        length = len(row.prompt_ids) + len(row.response_ids)
        if longest is not None and length > longest:
            raise RowError(
                number,
                f"prompt and response have {length} tokens; accepted: {longest}, what the model "
                "reads",
            )
        rows.append(row)
    return rows


def check_one_turn(number: int, response: str | Messages) -> None:
    """Raise RowError for an answer of several messages.

    What others wrote in between is no text of the model's, and not to be scored as such.
    """
    if not isinstance(response, str) and len(response) > 1:
        raise RowError(
            number,
            f"the answer has {len(response)} messages; accepted: text, or one message (`credit` "
            "reads answers of several turns)",
        )


def text_of(response: str | Messages) -> str:
    """The text that offsets refer to: the response, or the content of its message."""
    return response if isinstance(response, str) else response[-1]["content"]


def token_scores(
    rows: Sequence[EncodedResponse],
    responses: Sequence[str | Messages],
    scores: Sequence[Any],
    name: str,
    unit: str,
    higher: Direction = "liked",
    additive: bool = True,
) -> list[TokenScores]:
    """Join encoded rows with their scores, tensors [T_i]."""
    return [
        TokenScores(
            text=text_of(response),
            offsets=tuple(row.offsets),
            scores=each.detach().float().cpu(),
            name=name,
            unit=unit,
            higher=higher,
            additive=additive,
        )
        for row, response, each in zip(rows, responses, scores, strict=True)
    ]


def _identity(model: nn.Module | AdapterOff) -> tuple[Any, ...]:
    """The same for two handles of the same weights: an adapter switched off has many."""
    if isinstance(model, AdapterOff):
        return (id(model.peft_model), "adapter off", model.adapter)
    return (id(model), "", None)
