"""Soft Q and V of the states of a response, which exist only in a gauge."""

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from tokenq.errors import UserError

Gauge = Literal["logits", "outcome"]
"""How the one free number per state is fixed. In every gauge `Q - V = beta * log pi`
(2404.12358, eq. 5), so that the policy is the same and rewards differ by a potential (Def. 1).

logits:  Q is beta times the logit as the network writes it, V is beta times their logsumexp
         (eq. 6). Training on answers says nothing about this zero: differences between states mean
         nothing.
outcome: V[t] is the prefix value, 0 at the root: the soft expectation under the reference of the
         whole response's reward, given its first t tokens (2412.01981, Prop. 3.1). This is V* of
         the task that pays beta * log(pi / pi_ref) of the whole response at its end and nothing
         before.
"""


@dataclass(frozen=True, eq=False)
class SoftValues:
    """[T] soft values of the states of a response, beta times nats.

    symbol: "Q" of the token that was taken in each state, or "V" of the state
    gauge:  see :data:`Gauge`; numbers of two gauges cannot be compared
    """

    symbol: Literal["Q", "V"]
    gauge: Gauge
    values: Tensor


def check_gauge(gauge: str) -> None:
    """Raise UserError for a gauge that there is not."""
    if gauge not in get_args(Gauge):
        raise UserError(f"gauge is {gauge!r}; accepted: {', '.join(get_args(Gauge))}")
