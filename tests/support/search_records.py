"""Lines of `search.jsonl` and traces made by hand, for the tests of what is drawn of them."""

import re
from typing import Any

BETA = 0.1


def node(
    parent: int, text: str, score: float, fate: str = "open", ref: float | None = None, **more: Any
) -> dict[str, Any]:
    """A node of a trace."""
    plain = {"parent": parent, "token": 7, "text": text, "score": score, "logp": -0.5}
    return {**plain, "ref_logp": ref, "fate": fate, "visits": 0, "value": None, **more}


def tree() -> list[dict[str, Any]]:
    """Two responses that part after two tokens, a branch that died out, and dropped tokens."""
    return [
        node(-1, " a", -0.5),
        node(-1, " the", -0.9, "pruned"),
        node(0, " fine", -1.0),
        node(2, " film", -1.5, "chosen", -1.5),
        node(2, " mess", -1.7, "chosen"),
        node(2, " end", -4.0, "pruned"),
        node(0, " dull", -1.2),
        node(6, " one", -2.0, "pruned"),
        node(6, " two", -2.5, "pruned"),
        node(6, " three", -2.6, "pruned"),
    ]


def response(text: str, score: float, rewards: list[float] | None = None) -> dict[str, Any]:
    """A response of words, each with the blank before it, and an end token."""
    pieces = re.findall(r"\s?\S+|\s", text)
    offsets, at = [], 0
    for piece in pieces:
        offsets.append([at, at + len(piece)])
        at += len(piece)
    plain = {
        "text": text,
        "tokens": [*pieces, "</s>"],
        "offsets": [*offsets, [at, at]],
        "token_ids": list(range(len(pieces) + 1)),
        "score": score,
        "finish": "eos",
        "logps": [-0.5] * (len(pieces) + 1),
    }
    if rewards is None:
        return plain
    return {**plain, "rewards": rewards, "log_ratio": sum(rewards) / BETA, "kl": 0.25}


def record(row: int, prompt: Any, *responses: dict[str, Any]) -> dict[str, Any]:
    """A line."""
    return {"row": row, "prompt": prompt, "responses": list(responses), "seconds": 0.1}


def summary(**fields: Any) -> dict[str, Any]:
    """What stands above the page."""
    plain = {"method": "beam", "policy": "p", "reference": "r", "data": "d", "prompts": 2}
    return {**plain, "search/score": -1.25, **fields}
