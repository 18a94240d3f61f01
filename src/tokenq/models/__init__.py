"""Models: a policy and its reference, and the log-probabilities they give to tokens.

Public names are loaded at first use, so that importing the package needs no torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenq.models.bundled import materialise as materialise
    from tokenq.models.bundled import resolve as resolve
    from tokenq.models.fingerprint import weight_hash as weight_hash
    from tokenq.models.forward import enable_packed as enable_packed
    from tokenq.models.forward import pad_rows as pad_rows
    from tokenq.models.loading import disable_dropout as disable_dropout
    from tokenq.models.loading import load_policy as load_policy
    from tokenq.models.loading import load_tokenizer as load_tokenizer
    from tokenq.models.logps import token_logps as token_logps
    from tokenq.models.pair import Pair as Pair
    from tokenq.models.pair import load_pair as load_pair
    from tokenq.models.reference import AdapterOff as AdapterOff
    from tokenq.models.reference import ReferenceIdentity as ReferenceIdentity
    from tokenq.models.reference_cache import ReferenceCache as ReferenceCache

_HOMES = {
    "AdapterOff": "reference",
    "Pair": "pair",
    "ReferenceCache": "reference_cache",
    "ReferenceIdentity": "reference",
    "disable_dropout": "loading",
    "enable_packed": "forward",
    "load_pair": "pair",
    "load_policy": "loading",
    "load_tokenizer": "loading",
    "materialise": "bundled",
    "pad_rows": "forward",
    "resolve": "bundled",
    "token_logps": "logps",
    "weight_hash": "fingerprint",
}

__all__ = [
    "AdapterOff",
    "Pair",
    "ReferenceCache",
    "ReferenceIdentity",
    "disable_dropout",
    "enable_packed",
    "load_pair",
    "load_policy",
    "load_tokenizer",
    "materialise",
    "pad_rows",
    "resolve",
    "token_logps",
    "weight_hash",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
