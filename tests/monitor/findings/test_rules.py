"""Every rule both ways: it fires on the failure that was made for it, and on nothing unrelated."""

import functools
import json

import numpy as np
import pytest
from histories import KINDS, STEPS, cut, made_history, made_logs
from scipy import stats

from tokenq.monitor.findings.finding import SEVERITIES
from tokenq.monitor.findings.rules import RULES, findings
from tokenq.monitor.measures import MEASURES
from tokenq.monitor.readings import History

made = functools.cache(made_history)


@functools.cache
def found(kind, seed=0):
    return {finding.name: finding for finding in findings(made(kind, seed))}


FIRES = {
    "expected_decline": {"expected_decline": (20, 100), "rejected_side_only": (20, 120)},
    "displacement": {"displacement": (20, 80), "rejected_side_only": (20, 100)},
    "toward_rejected": {"mass_toward_rejected": (20, 80), "mass_to_neither": (20, 100)},
    "rejected_only": {"rejected_side_only": (20, 100)},
    "shared_prefix": {"shared_prefix_falls": (20, 60)},
    "squeezing": {"squeezing": (20, 80), "entropy_collapse": (40, 140)},
    "overfitting": {"overfitting": (120, 180), "memorising": (120, 200)},
    "length_drift": {"length_drift": (40, 160)},
    "shortening": {"length_drift": (40, 160)},
    "never_ending": {"stops_ending": (40, 80), "length_drift": (40, 160)},
    "repetition": {"repetition_drift": (40, 160), "overconfident_tokens": (40, 160)},
    "wrong_reference": {"identity_broken": (20, 60)},
    "start_gap": {"start_gap": (0, 0)},
    "sft_gap": {"sft_gap": (0, 0)},
    "near_duplicates": {"similar_pairs": (0, 0)},
    "overconfident": {"overconfident_pairs": (20, 60)},
    "kl_budget": {"kl_budget": (40, 180)},
    "ranking": {"ranking_falls": (20, 120)},
    "not_learning": {"not_learning": (20, 100)},
    "unstable": {"gradient_spikes": (110, 140)},
    "not_finite": {"not_finite": (110, 110)},
    "leak": {"separable_pairs": (10, 10)},
    "saturated": {"saturated_margin": (70, 110)},
    "loss_rises": {"loss_rises": (110, 170)},
}
"""Kind -> rule -> where `since` must lie; the effects set in as the kind says."""

FAR = {
    "kl_budget", "squeezing", "entropy_collapse", "overconfident_tokens", "overconfident_pairs",
    "expected_decline", "rejected_side_only", "loss_rises", "stops_ending", "repetition_drift",
    "length_drift",
}  # fmt: skip
"""What a policy that went very far from its reference may show besides."""
ALSO = {
    "displacement": {"mass_to_neither", "similar_pairs"},
    "toward_rejected": {"displacement", "similar_pairs", "not_learning", "rejected_side_only"},
    "rejected_only": {"displacement", "expected_decline", "mass_to_neither"},
    "shared_prefix": {"displacement", "rejected_side_only", "similar_pairs"},
    "squeezing": {"expected_decline", "overconfident_tokens"},
    "overfitting": {"displacement", "overconfident_pairs", "separable_pairs", "mass_to_neither"},
    "length_drift": {"stops_ending", "expected_decline"},
    "shortening": {"expected_decline"},
    "never_ending": {"expected_decline", "rejected_side_only", "squeezing"},
    "start_gap": {"expected_decline"},
    "near_duplicates": {"not_learning"},
    "overconfident": {"loss_rises"},
    "ranking": {"similar_pairs"},
    "repetition": FAR,
    "kl_budget": FAR,
    "unstable": FAR | {"displacement", "mass_to_neither"},
}
"""What else a kind really has: an answer that falls out of line is displaced, for any cause."""


@pytest.mark.parametrize("kind", FIRES)
def test_fires_on_what_was_made_for_it_and_on_nothing_unrelated(kind):
    names = found(kind)

    assert set(FIRES[kind]) <= set(names)
    assert set(names) <= set(FIRES[kind]) | ALSO.get(kind, set())
    for name, (first, last) in FIRES[kind].items():
        assert first <= names[name].since <= last, name


@pytest.mark.parametrize("seed", range(4))
def test_silent_on_healthy_runs(seed):
    assert found("healthy", seed) == {}


def test_every_rule_with_a_probe_has_a_failure_made_for_it():
    fired = {name for rules in FIRES.values() for name in rules}

    assert fired == {name for name in RULES if not name.startswith("logged_")}
    assert set(FIRES) == set(KINDS) - {"healthy"}


def test_displacement_is_an_alarm_where_the_forks_lose():
    assert found("toward_rejected")["displacement"].severity == "alarm"
    assert found("toward_rejected")["mass_toward_rejected"].severity == "alarm"


def test_an_expected_decline_is_a_note_and_asks_for_nothing():
    finding = found("expected_decline")["expected_decline"]

    assert finding.severity == "note"
    assert finding.change == []


def test_evidence_is_the_estimate_at_the_latest_probe():
    history = made("displacement")
    setup, last = history.setup, history.readings[-1]
    fall = (setup.baseline.ref_logps - last.pairs.logps)[0].sum(axis=0)
    excess = (fall - last.pairs.divergence[0])[:32]
    evidence = found("displacement")["displacement"].evidence

    assert evidence.interval.mean == pytest.approx(excess.mean())
    half = stats.t.ppf(0.975, 31) * stats.sem(excess)
    assert evidence.interval.low == pytest.approx(excess.mean() - half)
    assert 0 < evidence.error <= 0.01


def test_a_share_that_falls_is_shown_as_falling():
    interval = found("never_ending")["stops_ending"].evidence.interval

    assert interval.low <= interval.mean <= interval.high < 0


@pytest.mark.parametrize("kind", ["displacement", "overfitting", "never_ending", "squeezing"])
def test_later_probes_do_not_move_since(kind):
    """A finding that stands goes on standing since the same step while it is not interrupted."""
    before = {}
    for step in STEPS[2:]:
        now = {finding.name: finding.since for finding in findings(cut(made(kind), step))}
        for name, since in now.items():
            if name in before and RULES[name].needs == "readings":
                assert since == before[name] or since > before[name]
            assert since <= step
        before = now


def test_nothing_is_said_before_there_is_something_to_go_by():
    assert findings(History(None, [], [])) == []
    assert findings(cut(made("displacement"), 0)) in ([], [found("displacement")["similar_pairs"]])
    assert not any(
        RULES[name].find(made_history("displacement", pairs=2, responses=2, samples=2))
        for name in ("displacement", "mass_to_neither", "identity_broken")
    )


def test_without_held_out_pairs_the_trained_ones_are_read():
    history = made("displacement")
    plain = history.setup.to_dict()
    for pair in plain["probe"]["pairs"]:
        pair["source"] = "train"
    alone = History(type(history.setup).from_dict(plain), history.readings, [])
    finding = {one.name: one for one in findings(alone)}["displacement"]

    assert "training chosen answers" in finding.what


def test_a_model_that_became_nan_is_not_finite_and_nothing_else_fails():
    history = made_history("healthy", seed=1, steps=(0, 50, 100), samples=4)
    last = history.readings[-1]
    for array in (last.pairs.logps, last.pairs.entropy, last.forks.logps, last.forks.other):
        array[...] = np.nan
    last.responses.log_ratio[...] = np.nan

    names = {finding.name: finding for finding in findings(history)}
    assert names["not_finite"].since == 100
    assert "displacement" not in names


@pytest.mark.parametrize("kind", ["displacement", "kl_budget", "not_finite"])
def test_findings_are_sorted_and_plain(kind):
    every = findings(made(kind))
    ranks = [SEVERITIES.index(finding.severity) for finding in every]

    assert ranks == sorted(ranks, reverse=True)
    json.dumps([finding.to_dict() for finding in every], allow_nan=False)


@pytest.mark.parametrize("kind", FIRES)
def test_what_is_said_can_be_looked_up(kind):
    """Measures exist, sources are named, and warnings say what to change."""
    for finding in found(kind).values():
        for measure in finding.measures:
            assert measure in MEASURES or not measure.startswith("likelihood/"), measure
        assert finding.severity == "note" or finding.change
        assert "nan" not in finding.what or finding.name == "not_finite"


def test_logs_alone_leave_the_question_open():
    names = {finding.name: finding for finding in findings(made_logs("expected_decline"))}

    assert set(names) == {"logged_negative_chosen", "logged_both_fall"}
    assert "probe" in names["logged_negative_chosen"].change[0]


def test_logs_that_do_not_start_at_zero():
    names = {finding.name: finding for finding in findings(made_logs("start_gap"))}

    assert names["logged_start_gap"].severity == "alarm"
    assert names["logged_start_gap"].since == 10
    assert "logged_start_gap" not in {f.name for f in findings(made_logs("expected_decline"))}
    assert findings(made_logs("healthy")) == []


def test_rules_say_what_they_look_for():
    assert all(rule.definition.endswith(".") for rule in RULES.values())


def test_the_identity_is_tested_on_both_sides():
    """Responses that gain too much break it as those that lose too much."""
    history = made_history("wrong_reference", seed=0)
    for reading in history.readings:
        reading.responses.log_ratio[...] *= -1
    finding = RULES["identity_broken"].find(history)

    assert finding is not None
    assert finding.evidence.interval.low > 0
