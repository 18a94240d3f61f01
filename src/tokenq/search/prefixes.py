"""The beginnings of responses, as a user's value or reward function is shown them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tokenq.errors import UserError
from tokenq.models.branching.branches import Branches


@dataclass(frozen=True)
class Prefix:
    """The beginning of a response, or a whole one.

    prompt_ids:   the prompt's tokens
    response_ids: those written so far; an end token, if there is one, is the last
    """

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]


PrefixFunction = Callable[[Sequence[Prefix]], Sequence[float]]
"""One number for each prefix that is asked about; all prefixes of a step come in one call."""


def asked_once(
    function: PrefixFunction, prefixes: Sequence[Prefix], name: str = "value"
) -> list[float]:
    """Ask about each distinct prefix once; return a number for every given one.

    Raises UserError where the function, `name` in messages, does not return one finite number each.
    """
    distinct = list(dict.fromkeys(prefixes))
    if not distinct:
        return []
    if not callable(function):
        raise UserError(f"{name} is {function!r:.60}; accepted: a function of prefixes")
    told = told_numbers(function(distinct), len(distinct), name, "prefixes")
    wrong = next((value for value in told if not math.isfinite(value)), None)
    if wrong is not None:
        raise UserError(f"{name} returned {wrong}; accepted: finite numbers")
    known = dict(zip(distinct, told, strict=True))
    return [known[prefix] for prefix in prefixes]


def told_numbers(given: Any, count: int, name: str, things: str) -> list[float]:
    """What a user's function returned for `count` things, as floats.

    Raises UserError, with `name` and `things` in the message, unless it is a number each.
    """
    try:
        told = [float(value) for value in given]
    except (TypeError, ValueError):
        raise UserError(
            f"{name} returned {given!r:.60}; accepted: a number for each of {count} {things}"
        ) from None
    if len(told) != count:
        raise UserError(
            f"{name} returned {len(told)} numbers for {count} {things}; accepted: one each"
        )
    return told


def continued(branches: Branches, nodes: Tensor, tokens: Tensor) -> list[Prefix]:
    """What nodes [R] become by one of K tokens each, [R, K]: R * K prefixes, row by row."""
    prefixes = []
    numbers = branches.tree.prompt(nodes).tolist()
    for node, prompt, candidates in zip(nodes.tolist(), numbers, tokens.tolist(), strict=True):
        asked = tuple(branches.tree.prompts[prompt])
        written = tuple(branches.tree.response(node))
        prefixes += [Prefix(asked, (*written, token)) for token in candidates]
    return prefixes
