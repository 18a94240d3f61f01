"""Search: better responses from the model that there is, by the value that its training taught it.

Every way of searching reads each token once and takes a pair, a model or models by name; the result
is `results[i][j]`, the j-th best response to prompt i. Names are loaded at first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenq.search.a_star import best_first as best_first
    from tokenq.search.beam import beam_search as beam_search
    from tokenq.search.best_of import best_of_n as best_of_n
    from tokenq.search.chunk_beam import chunk_beam_search as chunk_beam_search
    from tokenq.search.decoding import Decoding as Decoding
    from tokenq.search.decoding import Progress as Progress
    from tokenq.search.diverse_beam import diverse_beam_search as diverse_beam_search
    from tokenq.search.generate import generate_with as generate_with
    from tokenq.search.guidance import AlignmentAware as AlignmentAware
    from tokenq.search.guidance import ProxyTuning as ProxyTuning
    from tokenq.search.guidance import RewardGuided as RewardGuided
    from tokenq.search.guidance import ValueGuided as ValueGuided
    from tokenq.search.guided import alignment_aware as alignment_aware
    from tokenq.search.guided import proxy_tuning as proxy_tuning
    from tokenq.search.guided import reward_guided as reward_guided
    from tokenq.search.guided import value_guided as value_guided
    from tokenq.search.prefixes import Prefix as Prefix
    from tokenq.search.results import SearchResult as SearchResult
    from tokenq.search.results import SearchResults as SearchResults
    from tokenq.search.sampling import greedy as greedy
    from tokenq.search.sampling import sample as sample
    from tokenq.search.scores import Score as Score
    from tokenq.search.stochastic_beam import stochastic_beam_search as stochastic_beam_search
    from tokenq.search.target import Target as Target
    from tokenq.search.trace import Trace as Trace
    from tokenq.search.tree_search import mcts as mcts
    from tokenq.search.values import PrefixValue as PrefixValue
    from tokenq.search.values import TabularValue as TabularValue
    from tokenq.search.values import Value as Value

_HOMES = {
    "AlignmentAware": "guidance",
    "Decoding": "decoding",
    "Prefix": "prefixes",
    "PrefixValue": "values",
    "Progress": "decoding",
    "ProxyTuning": "guidance",
    "RewardGuided": "guidance",
    "Score": "scores",
    "SearchResult": "results",
    "SearchResults": "results",
    "TabularValue": "values",
    "Target": "target",
    "Trace": "trace",
    "Value": "values",
    "ValueGuided": "guidance",
    "alignment_aware": "guided",
    "beam_search": "beam",
    "best_first": "a_star",
    "best_of_n": "best_of",
    "chunk_beam_search": "chunk_beam",
    "diverse_beam_search": "diverse_beam",
    "generate_with": "generate",
    "greedy": "sampling",
    "mcts": "tree_search",
    "proxy_tuning": "guided",
    "reward_guided": "guided",
    "sample": "sampling",
    "stochastic_beam_search": "stochastic_beam",
    "value_guided": "guided",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
