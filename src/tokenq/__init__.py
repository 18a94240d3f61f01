"""tokenq: train a language model on preferences, read what its tokens are worth, search with it.

Every public name is loaded at first use, so `import tokenq` costs milliseconds and needs no torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenq import mdp as mdp
    from tokenq import search as search
    from tokenq.credit.api import credit as credit
    from tokenq.models.logps import token_logps as token_logps
    from tokenq.models.pair import load_pair as load_pair

__version__ = "0.1.0"

__all__ = ["__version__", "credit", "load_pair", "mdp", "search", "token_logps"]

_HOMES = {
    "load_pair": "tokenq.models.pair",
    "token_logps": "tokenq.models.logps",
}


def __getattr__(name: str) -> object:
    if name == "credit":
        # The room itself: it is callable (see tokenq.callable_package), so that this name means the
        # same thing whether or not somebody has imported tokenq.credit before.
        return importlib.import_module("tokenq.credit")
    if name in ("mdp", "search"):
        return importlib.import_module(f"tokenq.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'tokenq' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
