"""Data: rows from files, folders and the hub, checked, rendered and turned into token ids.

Names are loaded at first use, so that importing this package needs neither torch nor datasets.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenq.data.encoding import EncodedResponse as EncodedResponse
    from tokenq.data.encoding import encode as encode
    from tokenq.data.encoding import encode_prompt as encode_prompt
    from tokenq.data.loading import Rows as Rows
    from tokenq.data.loading import load_rows as load_rows
    from tokenq.data.preparation import Prepared as Prepared
    from tokenq.data.preparation import prepare as prepare
    from tokenq.data.preparation import tokenizer_hash as tokenizer_hash
    from tokenq.data.report import PreparationReport as PreparationReport

_HOMES = {
    "EncodedResponse": "encoding",
    "encode": "encoding",
    "encode_prompt": "encoding",
    "Rows": "loading",
    "load_rows": "loading",
    "Prepared": "preparation",
    "prepare": "preparation",
    "tokenizer_hash": "preparation",
    "PreparationReport": "report",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"tokenq.data.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'tokenq.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
