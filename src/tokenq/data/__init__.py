"""Data: rows from files, folders and the hub, checked, rendered and turned into token ids.

Names are loaded at first use, so that importing this package needs neither torch nor datasets.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenq.data.bridging import AcceptedSpans as AcceptedSpans
    from tokenq.data.bridging import Bridged as Bridged
    from tokenq.data.bridging import ModelEditor as ModelEditor
    from tokenq.data.bridging import SmallestCorrect as SmallestCorrect
    from tokenq.data.bridging import bridge as bridge
    from tokenq.data.edits import add_edits as add_edits
    from tokenq.data.edits import edited_tokens as edited_tokens
    from tokenq.data.edits import stop_word_ids as stop_word_ids
    from tokenq.data.encoding import EncodedResponse as EncodedResponse
    from tokenq.data.encoding import encode as encode
    from tokenq.data.encoding import encode_prompt as encode_prompt
    from tokenq.data.features import add_features as add_features
    from tokenq.data.features import check_features as check_features
    from tokenq.data.features import check_row as check_row
    from tokenq.data.features import rewards_from_logps as rewards_from_logps
    from tokenq.data.loading import Rows as Rows
    from tokenq.data.loading import load_rows as load_rows
    from tokenq.data.preparation import Prepared as Prepared
    from tokenq.data.preparation import prepare as prepare
    from tokenq.data.preparation import tokenizer_hash as tokenizer_hash
    from tokenq.data.report import PreparationReport as PreparationReport
    from tokenq.data.steps import share_steps as share_steps
    from tokenq.data.tokenised import holds_token_ids as holds_token_ids
    from tokenq.data.tokenised import load_tokenised as load_tokenised
    from tokenq.data.tokenised import tokenised_kind as tokenised_kind

_HOMES = {
    "AcceptedSpans": "bridging",
    "Bridged": "bridging",
    "ModelEditor": "bridging",
    "SmallestCorrect": "bridging",
    "bridge": "bridging",
    "add_edits": "edits",
    "edited_tokens": "edits",
    "stop_word_ids": "edits",
    "EncodedResponse": "encoding",
    "encode": "encoding",
    "encode_prompt": "encoding",
    "add_features": "features",
    "check_features": "features",
    "check_row": "features",
    "rewards_from_logps": "features",
    "Rows": "loading",
    "load_rows": "loading",
    "Prepared": "preparation",
    "prepare": "preparation",
    "tokenizer_hash": "preparation",
    "PreparationReport": "report",
    "share_steps": "steps",
    "holds_token_ids": "tokenised",
    "load_tokenised": "tokenised",
    "tokenised_kind": "tokenised",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"tokenq.data.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'tokenq.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
