"""Other ways to per-token implicit rewards: what `benchmarks.credit_scoring` compares with.

Each takes the same models and texts and returns, for every response, the rewards [T] of its tokens
without the end token, beta times nats.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

BATCH = 16


@dataclass(frozen=True)
class Texts:
    """Prompts, and the response that follows each directly, with their token ids.

    response_ids end with the end token.
    """

    prompts: list[str]
    responses: list[str]
    prompt_ids: list[list[int]]
    response_ids: list[list[int]]

    def part(self, count: int) -> "Texts":
        """The first so many."""
        return Texts(*(column[:count] for column in vars(self).values()))


@torch.no_grad()
def plain(pair: Any, texts: Texts, beta: float) -> list[Tensor]:
    """One forward with full logits a response and model, as a short script does it."""
    sides = []
    for model in (pair.policy, pair.reference):
        found = []
        for prompt, response in zip(texts.prompt_ids, texts.response_ids, strict=True):
            ids = torch.tensor([[*prompt, *response]])
            logps = torch.log_softmax(model(input_ids=ids).logits[0, :-1].float(), -1)
            taken = logps.gather(-1, ids[0, 1:, None]).squeeze(-1)
            found.append(taken[len(prompt) - 1 :])
        sides.append(found)
    return [beta * (ours - theirs)[:-1] for ours, theirs in zip(*sides, strict=True)]


@torch.no_grad()
def by_prefixes(pair: Any, texts: Texts, beta: float) -> list[Tensor]:
    """Every prefix of a response is scored as a response of its own; differences of these scores.

    It is how reward-bench's per-token script (analysis/get_per_token_reward.py) reads a scalar
    reward model, here with the pair's summed log-ratio as the score. The code is ours: the script
    reads no pair of models.
    """
    found = []
    for prompt, response in zip(texts.prompt_ids, texts.response_ids, strict=True):
        rows = [[*prompt, *response[:length]] for length in range(1, len(response))]
        scores = torch.cat(
            [
                beta
                * (
                    _summed(pair.policy, rows[start : start + BATCH], len(prompt))
                    - _summed(pair.reference, rows[start : start + BATCH], len(prompt))
                )
                for start in range(0, len(rows), BATCH)
            ]
        )
        found.append(torch.diff(scores, prepend=scores.new_zeros(1)))
    return found


def _summed(model: nn.Module, rows: Sequence[Sequence[int]], start: int) -> Tensor:
    """Summed log-probs [n] of what stands behind the first `start` tokens of each row."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
    taken = torch.log_softmax(logits, -1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return (taken * mask[:, 1:])[:, start - 1 :].sum(-1)


def reward_lens(pair: Any, texts: Texts, beta: float) -> list[Tensor]:
    """`ImplicitRM.per_token_rewards` of reward-lens. Raises ImportError where it is missing.

    It puts every text through a chat template, so it is given one that adds nothing.
    """
    from reward_lens.signals.implicit import ImplicitRM

    tokenizer = copy.deepcopy(pair.tokenizer)
    tokenizer.chat_template = "{% for turn in messages %}{{ turn.content }}{% endfor %}"
    signal = ImplicitRM.from_models(pair.policy, pair.reference, tokenizer, beta=beta)
    items = list(zip(texts.prompts, texts.responses, strict=True))
    curves = signal.per_token_rewards(items).value.curves
    return [torch.as_tensor(curve) for curve in curves]


CONTESTANTS: dict[str, Callable[[Any, Texts, float], list[Tensor]]] = {
    "plain": plain,
    "reward-lens": reward_lens,
    "prefixes": by_prefixes,
}
