"""Search: better responses from the model that there is, by the value that its training taught it.

Every way of searching reads each token once and takes a pair, a model or models by name; the result
is `results[i][j]`, the j-th best response to prompt i. Names are loaded at first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenq.search.beam import beam_search as beam_search
    from tokenq.search.decoding import Decoding as Decoding
    from tokenq.search.decoding import Progress as Progress
    from tokenq.search.results import SearchResult as SearchResult
    from tokenq.search.results import SearchResults as SearchResults
    from tokenq.search.sampling import greedy as greedy
    from tokenq.search.sampling import sample as sample
    from tokenq.search.scores import Score as Score
    from tokenq.search.target import Target as Target
    from tokenq.search.trace import Trace as Trace

_HOMES = {
    "Decoding": "decoding",
    "Progress": "decoding",
    "Score": "scores",
    "SearchResult": "results",
    "SearchResults": "results",
    "Target": "target",
    "Trace": "trace",
    "beam_search": "beam",
    "greedy": "sampling",
    "sample": "sampling",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
