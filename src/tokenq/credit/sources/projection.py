"""Scores of one tokenisation on the tokens of another, and on words, through characters."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from tokenq.credit.sources.scores import Offsets, TokenScores


def project(scores: TokenScores, offsets: Offsets) -> TokenScores:
    """Put `scores` on tokens with other `offsets` in the same text.

    A token's score is shared equally by its characters, blanks not counted unless it has nothing
    else; a character's share is divided equally among the new tokens that hold it (bytes of one
    character). Characters that no new token holds (blanks that a template trims) give theirs to the
    next token, or to the last one. Tokens before the text fall to those before it, or to the first
    one; the end to the end. So the sum is conserved, except for an end token where `offsets` have
    none. The same offsets move nothing.

    Scores that are not additive are averaged: a character has the mean score of its tokens, and a
    new token the mean of its characters, blanks not counted unless it has nothing else.

    Raises ValueError for offsets outside the text, or without a token in it.
    """
    if offsets == scores.offsets:
        return scores
    target = replace(scores, offsets=offsets, scores=torch.zeros(len(offsets)))
    values = scores.scores.double().numpy()
    found = _moved(scores, target, values) if scores.additive else _averaged(scores, target, values)
    return replace(target, scores=torch.from_numpy(found).to(scores.scores.dtype))


def on_spans(scores: TokenScores, spans: Sequence[tuple[int, int]]) -> TokenScores:
    """Put `scores` on stretches of characters, such as words, that need not cover the text.

    Shares and means are as in :func:`project`; what lies outside all spans, the end token included,
    is left out. Raises ValueError for an empty span.
    """
    if any(start >= end for start, end in spans):
        raise ValueError("a span is empty")
    values = scores.scores.double().numpy()
    target = replace(scores, offsets=tuple(spans), scores=torch.zeros(len(spans)))
    if scores.additive:
        running = np.concatenate([[0.0], _by_character(scores, values).cumsum()])
        found = np.array([running[end] - running[start] for start, end in spans])
    else:
        found = _averaged(scores, target, values)
    return replace(target, scores=torch.from_numpy(found).to(scores.scores.dtype))


def _by_character(scores: TokenScores, values: np.ndarray) -> np.ndarray:
    """Share each token's value among its characters: [len(text)], fp64."""
    shares = np.zeros(len(scores.text))
    for value, (start, end) in zip(values, scores.offsets, strict=True):
        own = _own_characters(scores.text, start, end)
        if own:
            shares[own] += value / len(own)
    return shares


def _averaged(scores: TokenScores, target: TokenScores, values: np.ndarray) -> np.ndarray:
    """Means of `values` [T] over the characters of the tokens of `target`, fp64."""
    length = len(scores.text)
    levels = np.array([values[tokens].mean() for tokens in _holders(scores.offsets, length)])
    before, after = _outside(scores.offsets, length)
    ends = {False: before or [0], True: after or [-1]}
    return np.array(
        [
            levels[_own_characters(scores.text, start, end)].mean()
            if start < end
            else values[ends[start == length]].mean()
            for start, end in target.offsets
        ]
    )


def _own_characters(text: str, start: int, end: int) -> list[int]:
    visible = [at for at in range(start, end) if not text[at].isspace()]
    return visible or list(range(start, end))


def _moved(scores: TokenScores, target: TokenScores, values: np.ndarray) -> np.ndarray:
    """Sums of `values` [T] on the tokens of `target`, fp64."""
    length = len(scores.text)
    found = np.zeros(len(target))
    holders = _holders(target.offsets, length)
    for share, tokens in zip(_by_character(scores, values), holders, strict=True):
        if share:
            found[tokens] += share / len(tokens)
    before, after = _outside(target.offsets, length)
    first = next(at for at, (start, end) in enumerate(target.offsets) if start < end)
    for value, (start, end) in zip(values, scores.offsets, strict=True):
        if start < end:
            continue
        if start == length:
            if after:
                found[after[-1]] += value
        else:
            found[before[-1] if before else first] += value
    return found


def _holders(offsets: Offsets, length: int) -> list[list[int]]:
    """The tokens that hold each character, or else the nearest one that follows, or the last."""
    holders: list[list[int]] = [[] for _ in range(length)]
    for token, (start, end) in enumerate(offsets):
        for at in range(start, end):
            holders[at].append(token)
    held = [at for at in range(length) if holders[at]]
    if not held:
        raise ValueError("none of the tokens holds a character of the text")
    following = holders[held[-1]][-1:]
    for at in reversed(range(length)):
        if holders[at]:
            following = holders[at][:1]
        else:
            holders[at] = following
    return holders


def _outside(offsets: Offsets, length: int) -> tuple[list[int], list[int]]:
    """Tokens with an empty span, before the text's end and at it."""
    empty = [(token, start) for token, (start, end) in enumerate(offsets) if start == end]
    before = [token for token, start in empty if start < length]
    return before, [token for token, start in empty if start == length]
