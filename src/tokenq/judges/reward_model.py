"""The scoring judge that is a reward model: a sequence classifier reads prompt and response."""

from collections.abc import Sequence

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from tokenq.errors import UserError
from tokenq.judges.comparisons import Prompt, shown
from tokenq.judges.encoding import check_length, encode_responses
from tokenq.models.forward import causal_lm
from tokenq.models.logps import TOKEN_BUDGET
from tokenq.models.outcome_logits import (
    RewardHead,
    continues_text,
    length_batches,
    logits_of_whole_texts,
    longest_text,
)
from tokenq.models.reference import scoring


class RewardModel:
    """r(x, y), the reward model's own number; of several labels, the log-odds of one.

    A model on a causal backbone reads the response behind its prompt, through the chat template
    where the prompt is messages; a bidirectional encoder reads them as its two texts, joined by its
    tokenizer. Load one with :func:`tokenq.models.outcome.load_outcome_model`.

    label:        of a classifier with several labels, the one whose log-odds are the reward
    name:         in messages
    token_budget: input tokens of one forward, padding included; bounds memory
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        label: int | None = None,
        name: str = "reward model",
        token_budget: int = TOKEN_BUDGET,
    ) -> None:
        self.model = model
        self.name = name
        self._tokenizer = tokenizer
        self._head = RewardHead(int(causal_lm(model).config.num_labels or 1), label)
        self._continues = continues_text(model)
        self._token_budget = token_budget

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """Score responses.

        Raises UserError for a row that the model cannot read whole, and for messages where it is an
        encoder, which has no turns.
        """
        texts, types = self._encode(prompts, responses)
        scores: list[Tensor] = [Tensor()] * len(texts)
        with scoring(self.model):
            for batch in length_batches(texts, self._token_budget):
                logits = logits_of_whole_texts(
                    self.model,
                    [texts[at] for at in batch],
                    None if types is None else [types[at] for at in batch],
                )
                for at, each in zip(batch, logits, strict=True):
                    scores[at] = self._head.reward(each)
        return [float(score) for score in scores]

    def _encode(
        self, prompts: Sequence[Prompt], responses: Sequence[str]
    ) -> tuple[list[list[int]], list[list[int]] | None]:
        """Ids of each row, and what tells two texts apart."""
        longest = longest_text(self.model)
        if self._continues:
            sides = encode_responses(self._tokenizer, prompts, responses, longest, self.name)
            return [[*prompt, *response] for prompt, response in zip(*sides, strict=True)], None
        texts, types = [], []
        for prompt, response in zip(prompts, responses, strict=True):
            if not isinstance(prompt, str):
                raise UserError(
                    f"judge {self.name}, prompt {shown(prompt)}: is messages, the model reads two "
                    "texts; accepted: text"
                )
            row = self._tokenizer(prompt, response, return_token_type_ids=True)
            check_length(len(row["input_ids"]), longest, self.name, prompt)
            texts.append(row["input_ids"])
            types.append(row["token_type_ids"])
        return texts, types
