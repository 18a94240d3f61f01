"""Put comparisons before a judge, in an order that hides which response is whose."""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from hashlib import sha256

from tokenq.errors import UserError
from tokenq.judges.comparisons import (
    Asked,
    ComparingJudge,
    Comparison,
    Prompt,
    ScoringJudge,
    Verdict,
)

_WINDOW = 32
"""Comparisons scored between two reports."""


def judge_comparisons(
    judge: ScoringJudge | ComparingJudge,
    comparisons: Sequence[Comparison],
    *,
    tie: float = 0.0,
    seed: int = 0,
    both_orders: bool = False,
    on_verdict: Callable[[int, Verdict], None] = lambda number, verdict: None,
) -> list[Verdict]:
    """A verdict on each comparison. Equal texts are a tie, and no question to a comparing judge.

    tie:         a scoring judge's scores that differ by no more are a tie
    seed:        decides which response a comparing judge is shown first, by prompt and sample
    both_orders: ask a comparing judge twice, in either order; answers that differ are a tie
    on_verdict:  called with a comparison's number and its verdict as they come, in any order

    Raises UserError for scores that are not finite numbers, one for each response, and what the
    judge itself raises, once the answers to questions already asked have been reported.
    """
    found: dict[int, Verdict] = {}
    told = (
        _ask(judge, comparisons, seed, both_orders)
        if isinstance(judge, ComparingJudge)
        else _score(judge, comparisons, tie)
    )
    for number, verdict in told:
        found[number] = verdict
        on_verdict(number, verdict)
    return [found[number] for number in range(len(comparisons))]


def shows_ours_first(comparison: Comparison, seed: int) -> bool:
    """Whether ours is shown first: a coin thrown for each prompt and sample, for ever the same."""
    coin = sha256(f"{seed}\n{comparison.sample}\n{comparison.key}".encode("utf-8", "replace"))
    return bool(coin.digest()[0] & 1)


def _score(
    judge: ScoringJudge, comparisons: Sequence[Comparison], tie: float
) -> Iterator[tuple[int, Verdict]]:
    for start in range(0, len(comparisons), _WINDOW):
        window = comparisons[start : start + _WINDOW]
        # A baseline's one response stands against each of ours: it is scored once.
        texts: dict[tuple[str, str], Prompt] = {
            (each.key, text): each.prompt for each in window for text in (each.ours, each.theirs)
        }
        scores = judge(list(texts.values()), [text for _, text in texts])
        by_text = dict(zip(texts, _checked(scores, len(texts)), strict=True))
        for number, each in enumerate(window, start):
            ours, theirs = (by_text[each.key, text] for text in (each.ours, each.theirs))
            preference = 0.5 if abs(ours - theirs) <= tie else float(ours > theirs)
            yield number, Verdict(preference, scores=(ours, theirs))


def _checked(scores: Sequence[float], count: int) -> list[float]:
    found = [float(score) for score in scores]
    if len(found) != count:
        raise UserError(f"the judge gave {len(found)} scores; accepted: {count}, one a response")
    for score in found:
        if not math.isfinite(score):
            raise UserError(f"the judge gave the score {score}; accepted: finite numbers")
    return found


def _ask(
    judge: ComparingJudge, comparisons: Sequence[Comparison], seed: int, both_orders: bool
) -> Iterator[tuple[int, Verdict]]:
    def verdict(comparison: Comparison) -> Verdict:
        if comparison.ours == comparison.theirs:
            return Verdict(0.5)
        drawn = shows_ours_first(comparison, seed)
        return _verdict(
            [_question(judge, comparison, first) for first in (drawn, not drawn)[:times]]
        )

    times = 2 if both_orders else 1
    pool = ThreadPoolExecutor(judge.concurrency)
    failure: BaseException | None = None
    try:
        waiting: dict[Future[Verdict], int] = {
            pool.submit(verdict, each): number for number, each in enumerate(comparisons)
        }
        for done in as_completed(waiting):
            if done.cancelled():
                continue
            error = done.exception()
            if error is None:
                yield waiting[done], done.result()
            elif failure is None:
                failure = error
                for each in waiting:
                    each.cancel()
    finally:
        pool.shutdown(cancel_futures=True)
    if failure is not None:
        raise failure


def _question(judge: ComparingJudge, comparison: Comparison, ours_first: bool) -> Asked:
    shown = (comparison.ours, comparison.theirs)
    first, second = shown if ours_first else shown[::-1]
    return Asked(ours_first, judge.compare(comparison.prompt, first, second))


def _verdict(asked: Sequence[Asked]) -> Verdict:
    preferences = {each.preference for each in asked}
    if None in preferences:
        return Verdict(None, asked=tuple(asked))
    told = preferences.pop() if len(preferences) == 1 else 0.5
    return Verdict(told, asked=tuple(asked))
