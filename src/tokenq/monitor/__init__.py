"""The monitor: what preference training does to likelihoods, and which pairs do it.

Names are loaded at first use, so that importing this package needs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenq.monitor.callback import Monitor as Monitor
    from tokenq.monitor.decision import Decision as Decision
    from tokenq.monitor.decision import decide as decide
    from tokenq.monitor.filtering import FilterSummary as FilterSummary
    from tokenq.monitor.filtering import filter_pairs as filter_pairs
    from tokenq.monitor.findings.finding import Finding as Finding
    from tokenq.monitor.findings.rules import RULES as RULES
    from tokenq.monitor.identity import KLIdentity as KLIdentity
    from tokenq.monitor.identity import kl_identity as kl_identity
    from tokenq.monitor.journal import MonitorFolder as MonitorFolder
    from tokenq.monitor.likelihood import LikelihoodSplit as LikelihoodSplit
    from tokenq.monitor.likelihood import answer_parts as answer_parts
    from tokenq.monitor.likelihood import likelihood_split as likelihood_split
    from tokenq.monitor.logs import run_history as run_history
    from tokenq.monitor.measures import MEASURES as MEASURES
    from tokenq.monitor.measures import Measure as Measure
    from tokenq.monitor.measures import measured as measured
    from tokenq.monitor.measures import metrics as metrics
    from tokenq.monitor.probe_texts import probe_pairs as probe_pairs
    from tokenq.monitor.probing import ProbeOptions as ProbeOptions
    from tokenq.monitor.probing import Prober as Prober
    from tokenq.monitor.similarity import PairSimilarity as PairSimilarity
    from tokenq.monitor.similarity import pair_similarities as pair_similarities

_HOMES = {
    "Decision": "decision",
    "FilterSummary": "filtering",
    "Finding": "findings.finding",
    "KLIdentity": "identity",
    "LikelihoodSplit": "likelihood",
    "MEASURES": "measures",
    "Measure": "measures",
    "Monitor": "callback",
    "MonitorFolder": "journal",
    "PairSimilarity": "similarity",
    "ProbeOptions": "probing",
    "Prober": "probing",
    "RULES": "findings.rules",
    "answer_parts": "likelihood",
    "decide": "decision",
    "filter_pairs": "filtering",
    "kl_identity": "identity",
    "likelihood_split": "likelihood",
    "measured": "measures",
    "metrics": "measures",
    "pair_similarities": "similarity",
    "probe_pairs": "probe_texts",
    "run_history": "logs",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
