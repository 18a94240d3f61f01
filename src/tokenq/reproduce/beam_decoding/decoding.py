"""Ways to decode, each one call of `tokenq.search`, and the answers that are kept of them."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedModel

from tokenq.models import load_policy
from tokenq.models.branching.branches import POLICY, REFERENCE
from tokenq.reproduce.beam_decoding.policies import Weights, put
from tokenq.search import SearchResult, alignment_aware, beam_search, sample

_ROWS = 160
"""Rows of a forward, about: prompts that are searched together times beams."""


@dataclass(frozen=True)
class Method:
    """One way to decode.

    name:           as tables call it, the width left out
    width:          beams, or samples to choose from
    score:          what is searched: "likelihood", "log_ratio", a mixture of the two
    length_penalty: a response of n tokens is ranked by its score / n ** length_penalty
    plausibility:   only tokens of at least so many times the likeliest one's probability
    """

    name: str
    width: int
    score: str | float = "likelihood"
    length_penalty: float = 1.0
    plausibility: float = 0.0

    @property
    def key(self) -> str:
        """The name of its files."""
        return f"{re.sub(r'[^a-z0-9]+', '-', self.name)}-{self.width}"

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return asdict(self)


BEAM, UNNORMALISED, SAMPLE = "beam", "beam, no length penalty", "sample"
LOG_RATIO, MIXTURE, ALIGNMENT = "log-ratio beam", "half log-ratio beam", "alignment-aware"


def beam(width: int) -> Method:
    """Likelihood beam search with the length penalty that is usual, 1."""
    return Method(BEAM, width)


SUM = Method(UNNORMALISED, 5, length_penalty=0.0)
SAMPLES = Method(SAMPLE, 16)
"""From which the best of so many and of fewer are chosen by implicit reward."""
OTHERS = (
    Method(ALIGNMENT, 1, "log_ratio", plausibility=0.1),
    Method(MIXTURE, 5, 0.5),
    Method(LOG_RATIO, 5, "log_ratio"),
)
"""Beside plain beams. Alignment-aware decoding (arXiv 2509.26169) takes in each step the token of
greatest log-ratio among those of at least a tenth of the likeliest one's probability."""
WIDE_LOG_RATIO = Method(LOG_RATIO, 20, "log_ratio")


@dataclass(frozen=True)
class Answer:
    """What was decoded.

    token_ids: without the given beginning; with the end token, if it ended
    ended:     whether it ended by itself
    logp:      of the tokens under the policy, nats
    """

    token_ids: list[int]
    ended: bool
    logp: float

    def to_list(self) -> list[Any]:
        """Compact JSON; `Answer(*row)` reads it."""
        return [self.token_ids, self.ended, round(self.logp, 3)]


def decoded(
    model: PreTrainedModel,
    reference: PreTrainedModel | None,
    starts: Sequence[list[int]],
    method: Method,
    new_tokens: int,
) -> list[Answer]:
    """The best answer to each start.

    starts: token ids to go on from
    """
    searched: Any = {POLICY: model}
    if method.score != "likelihood":
        searched[REFERENCE] = reference
    prompts: list[Any] = [list(each) for each in starts]
    at_once = max(1, _ROWS // method.width)
    if method.name == ALIGNMENT:
        found = alignment_aware(
            searched,
            prompts,
            method.plausibility,
            max_new_tokens=new_tokens,
            batch_size=at_once,
        )
    else:
        found = beam_search(
            searched,
            prompts,
            num_beams=method.width,
            max_new_tokens=new_tokens,
            score=method.score,
            length_penalty=method.length_penalty,
            plausibility=method.plausibility,
            num_return_sequences=1,
            batch_size=at_once,
        )
    return [_answer(each) for each in found.best]


def sampled(
    model: PreTrainedModel, starts: Sequence[list[int]], count: int, new_tokens: int, seed: int
) -> list[list[Answer]]:
    """`count` samples behind each start, at temperature 1."""
    found = sample(
        model,
        [list(each) for each in starts],
        count,
        new_tokens,
        seed=seed,
        batch_size=max(1, _ROWS // count),
    )
    return [[_answer(each) for each in row] for row in found]


def _answer(found: SearchResult) -> Answer:
    total = float(found.model_logps[POLICY].double().sum())
    return Answer(found.token_ids, found.finish == "eos", total)


def opened(name: str, weights: Weights, dtype: str) -> PreTrainedModel:
    """The model with these last layers, in `dtype`."""
    model = load_policy(name, dtype=dtype, device="cpu")
    assert isinstance(model, PreTrainedModel)
    inner: Any = model.base_model
    put(weights, list(inner.layers))
    return model.eval()
