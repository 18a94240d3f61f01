"""All rules by name, and what they find in a run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from tokenq.monitor.findings import (
    calibration,
    decline,
    displacement,
    drift,
    learning,
    logged,
    reference,
)
from tokenq.monitor.findings.finding import SEVERITIES, Finding
from tokenq.monitor.readings import History

Needs = Literal["readings", "logs"]


@dataclass(frozen=True)
class Rule:
    """A rule. `needs`: what it judges by; a history without that is not shown to it."""

    name: str
    needs: Needs
    rule: Callable[[History], Finding | None]

    @property
    def definition(self) -> str:
        """One line: what it looks for."""
        return (self.rule.__doc__ or "").strip().splitlines()[0]

    def find(self, history: History) -> Finding | None:
        """What it says of this run, if anything."""
        if self.needs == "readings" and (history.setup is None or not history.readings):
            return None
        return self.rule(history)


def _named(*rules: Callable[[History], Finding | None], needs: Needs) -> dict[str, Rule]:
    return {rule.__name__: Rule(rule.__name__, needs, rule) for rule in rules}


RULES: Mapping[str, Rule] = {
    **_named(
        reference.identity_broken,
        reference.start_gap,
        reference.sft_gap,
        reference.kl_budget,
        displacement.similar_pairs,
        displacement.displacement,
        displacement.mass_to_neither,
        displacement.mass_toward_rejected,
        displacement.squeezing,
        displacement.entropy_collapse,
        decline.expected_decline,
        decline.rejected_side_only,
        decline.shared_prefix_falls,
        learning.not_learning,
        learning.overfitting,
        learning.memorising,
        learning.ranking_falls,
        drift.length_drift,
        drift.repetition_drift,
        drift.stops_ending,
        calibration.overconfident_pairs,
        calibration.overconfident_tokens,
        needs="readings",
    ),
    **_named(
        logged.not_finite,
        logged.gradient_spikes,
        logged.separable_pairs,
        logged.saturated_margin,
        logged.loss_rises,
        logged.logged_start_gap,
        logged.logged_negative_chosen,
        logged.logged_both_fall,
        needs="logs",
    ),
}


def findings(history: History) -> list[Finding]:
    """What all rules say of a run so far, the most severe first, then the earliest."""
    found = [finding for rule in RULES.values() if (finding := rule.find(history))]
    return sorted(found, key=lambda one: (-SEVERITIES.index(one.severity), one.since))
