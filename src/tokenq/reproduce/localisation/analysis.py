"""What the tables of all tasks, arms and seeds say together: the results of the benchmark."""

from collections.abc import Mapping, Sequence
from typing import Any

from tokenq.credit.estimators import ESTIMATORS
from tokenq.credit.localisation import Estimate, Metric, mean_average_precision
from tokenq.reproduce.localisation.arms import DPO, REWARD_MODEL
from tokenq.reproduce.localisation.measures import (
    Localisation,
    Signal,
    Words,
    averaged,
    signals_of,
)
from tokenq.reproduce.localisation.tables import START, Table

TaskTables = Mapping[str, Sequence[Table]]
"""The tables of one task: by arm, one a seed."""

PLAIN = "plain"
ENSEMBLE = "dpo, mean of seeds"
"""The mean over the seeds of every signal of DPO."""
_ALL_SIGNALS = (START, DPO.name, ENSEMBLE)
_OF_OTHERS = (
    PLAIN,
    "centred",
    "standardised",
    "words",
    "surprisal",
    "from the start",
    "logit",
    "prefix difference",
)
"""Signals of the other arms that are measured: the rest differs little from these."""


def localisation(tables: TaskTables, resamples: int) -> dict[str, Any]:
    """Results of a task whose truth is wrong characters."""
    known = Localisation(next(iter(tables.values()))[0]["items"], resamples=resamples)
    signals = _signals(tables)
    return {
        "kinds": dict(known.kinds),
        "arms": _measured(signals, known.measures),
        "by kind": _by_arm(
            {
                (each.arm, each.name): _plain_json(known.by_kind(each))
                for each in signals
                if _is_headline(each)
            }
        ),
        "accuracy": _by_arm(
            {
                (each.arm, each.name): _plain_json(known.accuracies(each))
                for each in signals
                if each.name in (PLAIN, "surprisal", "prefix difference")
            }
        ),
        "chosen": chosen_estimators(known, signals),
        "pairs": _pairs(tables),
    }


def words(tables: TaskTables, resamples: int) -> dict[str, Any]:
    """Results of a task whose truth is the human valence of words."""
    items = next(iter(tables.values()))[0]["items"]
    known = Words(items, resamples=resamples)
    tables = _with_unseen_words(tables)
    return {
        "texts": len(items),
        "places": sum(len(item["words"]) for item in items),
        "words": len(known.valence),
        "arms": _measured(_signals(tables), known.measures),
        "pairs": _pairs(tables),
    }


def _with_unseen_words(tables: TaskTables) -> TaskTables:
    """The untrained model is read on the words that DPO's pairs of the seed do not hold."""
    if DPO.name not in tables or START not in tables:
        return tables
    start = [
        {**own, "training": {**own["training"], "words": trained["training"]["words"]}}
        for own, trained in zip(tables[START], tables[DPO.name], strict=True)
    ]
    return {**tables, START: start}


def _signals(tables: TaskTables) -> list[Signal]:
    found = dict(tables)
    if DPO.name in tables and len(tables[DPO.name]) > 1:
        found[ENSEMBLE] = [averaged(tables[DPO.name])] * len(tables[DPO.name])
    return [
        each for each in signals_of(found) if each.arm in _ALL_SIGNALS or each.name in _OF_OTHERS
    ]


def _is_headline(signal: Signal) -> bool:
    return signal.name in (PLAIN, "surprisal", "prefix difference", "logit") or (
        signal.arm in _ALL_SIGNALS
    )


def _measured(signals: Sequence[Signal], measure: Any) -> dict[str, Any]:
    """Each signal's measures and, on the same resamples, what they are above those of plain DPO.

    A signal that only some texts have is compared on these.
    """
    baseline = next((s for s in signals if (s.arm, s.name) == (DPO.name, PLAIN)), None)
    whole = measure(baseline) if baseline else None
    found: dict[tuple[str, str], Any] = {}
    for signal in signals:
        own = measure(signal)
        entry: dict[str, Any] = {"measures": _plain_json(own), "texts": len(signal.items()[0])}
        if baseline and whole and signal is not baseline:
            against = measure(_on_same_texts(baseline, signal)) if signal.partial else whole
            entry["less plain dpo"] = {
                name: own[name].minus(against[name]).to_dict() for name in own if name in against
            }
        found[signal.arm, signal.name] = entry
    return _by_arm(found)


def _on_same_texts(baseline: Signal, partial: Signal) -> Signal:
    kept = {item["id"] for item in partial.items()[0]}
    tables = [
        {**table, "items": [item for item in table["items"] if item["id"] in kept]}
        for table in baseline.tables
    ]
    return Signal(baseline.arm, baseline.name, tables)


def chosen_estimators(
    known: Localisation, signals: Sequence[Signal], metric: Metric = mean_average_precision
) -> list[dict[str, Any]]:
    """The estimator that is best on one half of the texts, and what it is above plain DPO on the
    other, for both halves: a choice that has not seen what it is judged on.

    Estimators are those of `credit`, of the arms that are trained on the true labels of the usual
    pairs. They need no label of a token; the choice between them does.
    """
    candidates = [each for each in signals if _is_candidate(each)]
    baseline = next((s for s in candidates if (s.arm, s.name) == (DPO.name, PLAIN)), None)
    if baseline is None:
        return []
    found = []
    for judged_on in (0, 1):
        scores = {each: known.on_half(each, 1 - judged_on, metric).value for each in candidates}
        best = max(candidates, key=lambda each: scores[each])
        above = known.on_half(best, judged_on, metric).minus(
            known.on_half(baseline, judged_on, metric)
        )
        found.append({"arm": best.arm, "signal": best.name, "less plain dpo": above.to_dict()})
    return found


_CANDIDATE_ARMS = (DPO.name, ENSEMBLE, "tdpo", "bmc", "implicit_prm", REWARD_MODEL)


def _is_candidate(signal: Signal) -> bool:
    return signal.arm in _CANDIDATE_ARMS and (
        signal.name in ESTIMATORS or signal.name == "prefix difference"
    )


def _by_arm(entries: Mapping[tuple[str, str], Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for (arm, name), entry in entries.items():
        found.setdefault(arm, {})[name] = entry
    return found


def _pairs(tables: TaskTables) -> dict[str, int]:
    return {arm: own[0]["training"]["pairs"] for arm, own in tables.items()}


def _plain_json(measures: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: each.to_dict() for name, each in measures.items()}
