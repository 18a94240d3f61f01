"""The monitor: what preference training does to likelihoods, and which pairs do it.

Names are loaded at first use, so that importing this package needs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenq.monitor.filtering import FilterSummary as FilterSummary
    from tokenq.monitor.filtering import filter_pairs as filter_pairs
    from tokenq.monitor.similarity import PairSimilarity as PairSimilarity
    from tokenq.monitor.similarity import pair_similarities as pair_similarities

_HOMES = {
    "FilterSummary": "filtering",
    "PairSimilarity": "similarity",
    "filter_pairs": "filtering",
    "pair_similarities": "similarity",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
