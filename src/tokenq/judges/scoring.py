"""Score tokenised pairs with a policy and its reference, the latter through the cache on disk."""

from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor

from tokenq.data.preparation import Prepared
from tokenq.data.windows import pair_windows
from tokenq.errors import UserError
from tokenq.judges.pair_accuracy import PairScore, ResponseScore
from tokenq.models.logps import TOKEN_BUDGET, token_logps
from tokenq.models.pair import Pair, reference_of
from tokenq.models.reference import scoring
from tokenq.models.reference_cache import ReferenceCache

_WINDOW_BUDGETS = 4
"""Token budgets scored between two reports of progress: rows within are packed together."""


def score_pairs(
    pair: Pair,
    prepared: Prepared,
    *,
    token_budget: int = TOKEN_BUDGET,
    cache_root: str | Path | None = None,
    on_progress: Callable[[int], None] = lambda count: None,
) -> list[PairScore]:
    """Return the summed log-probabilities of every pair, in the order of `prepared`.

    prepared:     tokenised preference rows
    token_budget: input tokens of one forward
    cache_root:   folder of the reference cache; tokenq's own by default
    on_progress:  called with the number of pairs that the policy has scored since the last call

    Raises UserError for a pair without a reference, or rows of another kind.
    """
    reference = reference_of(pair)
    if prepared.kind != "preference":
        raise UserError(
            f"the rows are of kind '{prepared.kind}'; accepted: preference pairs (prompt, chosen, "
            "rejected)"
        )
    cache = ReferenceCache.open(reference, cache_root)
    scores: list[PairScore] = []
    rows = list(prepared.dataset)
    prompts, responses = _flat(rows)
    cache.fill(prompts, responses, token_budget=token_budget)
    for window in pair_windows(rows, _WINDOW_BUDGETS * token_budget):
        prompts, responses = _flat(window)
        with scoring(pair.policy) as model:
            logps = token_logps(model, prompts, responses, token_budget=token_budget)
        both = zip(logps, cache.lookup(prompts, responses), strict=True)
        sides = [_response(*each) for each in both]
        scores += map(_pair, window, sides[::2], sides[1::2])
        on_progress(len(window))
    return scores


def _flat(rows: Sequence[dict[str, Any]]) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and responses, each row's chosen one before its rejected one."""
    prompts = [row["prompt_ids"] for row in rows for _ in range(2)]
    sides = chain.from_iterable((row["chosen_ids"], row["rejected_ids"]) for row in rows)
    return prompts, list(sides)


def _response(logps: Tensor, ref_logps: Tensor) -> ResponseScore:
    # Sums of hundreds of tokens keep their digits in fp64.
    return ResponseScore(float(logps.double().sum()), float(ref_logps.double().sum()), len(logps))


def _pair(row: dict[str, Any], chosen: ResponseScore, rejected: ResponseScore) -> PairScore:
    return PairScore(row["row"], chosen, rejected)
