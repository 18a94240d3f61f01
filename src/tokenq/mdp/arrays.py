"""Array types of this room, sums in log space, and the check that every beta passes."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.int64]


def finite(log_probs: Array) -> Array:
    """`log_probs` with 0 for -inf, for products with a probability that is 0 there."""
    return np.where(np.isneginf(log_probs), 0.0, log_probs)


def log_sum_exp(values: Array) -> Array:
    """log sum exp over the last axis, without overflow; -inf is a term of 0."""
    highest = values.max(-1)
    shift = finite(highest)[..., None]
    with np.errstate(divide="ignore"):
        result: Array = np.log(np.exp(values - shift).sum(-1)) + shift[..., 0]
    return result


def log_softmax(logits: Array) -> Array:
    """`logits` normalised over the last axis."""
    return logits - log_sum_exp(logits)[..., None]


def per_edge(values: ArrayLike) -> Array:
    """One number per MDP [...] as [..., 1, 1], ready to meet [..., S, A] or [..., P, R]."""
    return np.asarray(values, dtype=np.float64)[..., None, None]


def positive(beta: ArrayLike) -> Array:
    """`beta` as float64. Raises ValueError unless all of it is finite and > 0."""
    beta = np.asarray(beta, dtype=np.float64)
    if not (np.isfinite(beta) & (beta > 0)).all():
        raise ValueError(f"beta must be > 0, got {beta}")
    return beta
