"""Records as `tokenq credit` writes them, made by hand, for the tests of the page."""

import re
from typing import Any

from tokenq.report.html import PageHead

HOSTILE = (
    "</script><script>alert(1)</script><!-- \"q\" 'q' & <u>x</u> \u202eevil\u202c "
    "👩\u200d👩\u200d👧 \u2028 \ud800"
)
BETA = 0.1


def side(
    text: str, pieces: list[str] | None = None, rewards: list[float] | None = None
) -> dict[str, Any]:
    """A response of `pieces` (words, each with the blank before it) and an end token.

    rewards: of all tokens, beta times nats; 0.05 each if none are given
    """
    pieces = re.findall(r"\s?\S+|\s", text) if pieces is None else pieces
    offsets, at = [], 0
    for piece in pieces:
        offsets.append([at, at + len(piece)])
        at += len(piece)
    count = len(pieces) + 1
    rewards = [0.05] * count if rewards is None else rewards
    assert len(rewards) == count
    best = [{"token": " film", "token_id": 7, "logp": -0.5, "ref_logp": -1.5, "reward": 0.1}]
    return {
        "response": text,
        "reward": sum(rewards),
        "tokens": [*pieces, "</s>"],
        "token_ids": list(range(count)),
        "offsets": [*offsets, [len(text), len(text)]],
        "logps": [-1.5 + reward / BETA for reward in rewards],
        "ref_logps": [-1.5] * count,
        "rewards": rewards,
        "values": [sum(rewards[:t]) for t in range(count + 1)],
        "alternatives": [best] * count,
        "tokens_cut": 0,
    }


def record(row: int, chosen: str, rejected: str, margin: float = 0.2) -> dict[str, Any]:
    """A scored pair."""
    responses = {"chosen": side(chosen), "rejected": side(rejected)}
    return {"row": row, "prompt": "Review:", "responses": responses, "margin": margin}


def head(**fields: Any) -> PageHead:
    """The head of a page of two rows, with the fields given."""
    return PageHead(**{"policy": "p", "reference": "r", "beta": BETA, "rows": 2, **fields})
