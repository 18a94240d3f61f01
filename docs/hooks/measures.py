"""The page of what the monitor measures and looks for, made from the code that does it.

python docs/hooks/measures.py          # writes docs/reference/measures.md
"""

from collections.abc import Iterator
from pathlib import Path

from tokenq.monitor import decision
from tokenq.monitor.findings import (
    calibration,
    decline,
    displacement,
    drift,
    learning,
    logged,
    looks,
    reference,
)
from tokenq.monitor.findings.rules import RULES
from tokenq.monitor.measures import MEASURES

PAGE = Path(__file__).parents[1] / "reference" / "measures.md"

GROUPS = {
    "likelihood": "Likelihoods and implicit rewards",
    "identity": "The KL identity and divergences",
    "displacement": "Displacement: where the mass went",
    "accuracy": "Accuracies",
    "drift": "What the policy writes",
    "calibration": "Calibration",
    "reference": "Reference and start",
    "gradients": "Pairs that push their own chosen answer down",
}
"""Of measures, in the order of the page, with their titles."""

THRESHOLDS = {
    "identity_broken": f"{reference.LEAST_BREAK:g} nats and {reference.LEAST_BREAK_SHARE:.0%} of "
    "the divergence between the two sides",
    "start_gap": f"{reference.START_LEAST:g} nats of divergence a response before step 1, tested "
    f"against {reference.START_USUAL:g}",
    "sft_gap": f"{reference.SFT_LEAST:g} nats a token, tested against {reference.SFT_USUAL:g}",
    "kl_budget": f"KL(pi, ref) above {reference.BUDGET:g} nats a response",
    "similar_pairs": f"{displacement.SIMILAR_LEAST:.0%} of pairs, tested against "
    f"{displacement.SIMILAR_USUAL:.0%}",
    "displacement": f"{displacement.LEAST_EXCESS:g} nats an answer beyond KL(ref, pi), and "
    f"{displacement.LEAST_EXCESS_SHARE:.0%} of the whole fall; an alarm where the chosen token at "
    f"the fork lost {displacement.LEAST_FORK:g} of probability as well",
    "mass_to_neither": f"{displacement.LEAST_FORK:g} of probability lost by the chosen token, at "
    "least half of it gained by tokens of neither answer",
    "mass_toward_rejected": f"{displacement.LEAST_TOWARD:g} of probability moved, and "
    f"{displacement.LEAST_FORK:g} lost by the chosen token",
    "squeezing": f"{displacement.LEAST_PEAK:g} nats gained by the most probable token, while both "
    f"answers lost {displacement.LEAST_EXCESS:g}",
    "entropy_collapse": f"{displacement.LEAST_ENTROPY_FALL:.0%} of the reference's entropy; an "
    f"alarm from {displacement.ALARMING_ENTROPY_FALL:.0%}",
    "expected_decline": f"{decline.LEAST_FALL:g} nats an answer, and no `displacement`",
    "rejected_side_only": f"{decline.LEAST_FALL:g} nats lost by chosen answers, "
    f"{decline.LEAST_FALL:g} of margin",
    "shared_prefix_falls": f"{decline.LEAST_SHARED:g} nats beyond the divergence's part",
    "not_learning": f"from step {learning.PATIENCE}: margin below {learning.FLAT / 2:g} nats, "
    f"accuracy at most {learning.CHANCE:.0%}",
    "overfitting": f"{learning.LEAST_LOSS:g} nats of held-out margin below its best",
    "memorising": f"{learning.LEAST_PARTING:g} nats each way",
    "ranking_falls": f"{learning.LEAST_RANKING:.0%} of pairs, at a reward accuracy of "
    f"{learning.ACCURATE:.0%} or more",
    "length_drift": f"{drift.LEAST_LENGTH:.0%} of the reference's mean length",
    "repetition_drift": f"{drift.LEAST_REPETITION:.0%} of 3-grams more than the reference's",
    "stops_ending": f"{drift.LEAST_UNENDED:.0%} of responses fewer",
    "overconfident_pairs": f"confidence {calibration.LEAST_PAIRS:g} above accuracy",
    "overconfident_tokens": f"{calibration.LEAST_TOKENS:g} of probability above the reference's",
    "not_finite": "one value",
    "gradient_spikes": f"{logged.SPIKES} lines over {logged.SPIKE:g} times the median before",
    "separable_pairs": f"accuracy {logged.SEPARABLE:g} in the first {logged.FEW} lines",
    "saturated_margin": f"margin {logged.SATURATED:g} (beta x nats), mean of {logged.FEW} lines",
    "loss_rises": f"{logged.LEAST_RISE:g} above its best, and more than its scatter",
    "logged_start_gap": f"{logged.START_OFFSET:g} (beta x nats) in the first line of both sides, "
    f"up to step {logged.START_STEPS}, and no movement as large",
    "logged_negative_chosen": f"{logged.NEGATIVE:g} (beta x nats) below 0, mean of {logged.FEW} "
    "lines",
    "logged_both_fall": f"{logged.NEGATIVE:g} (beta x nats) below 0, margins growing",
}
"""How large an effect must be before its rule speaks, however sure it is."""


_HEAD = """# Measures and findings

Made by `python docs/hooks/measures.py` from the code that measures. How to get them and what to do
about them: [watch a run](../guide/monitor.md) and
[what your curves mean](../guide/what-your-curves-mean.md).

## Measures

Every number is a mean with a 95 % Student-t interval, over pairs or over prompts; answers to one
prompt are averaged first. Pairs are held-out ones; a measure marked † is also taken of pairs that
training sees, as `likelihood/train_...`. The cost is that of a probe: one forward over its texts
serves all measures that name it."""

_FINDINGS = f"""
## Findings

A rule that judges by readings speaks when its effect is at least as large as the table says *and* a
test over the probe's rows finds it. A rule finds what is not there in at most {looks.ERROR:.0%} of
runs, however often it looked: the error is shared out over all looks of a run. Since which step:
the first look from which on the effect has held without a break. Rules of logs have no rows to test
by; their thresholds are all there is.

| finding | looks for | by | from |
|---|---|---|---|"""


_VERDICT = """
## The verdict

What `tokenq monitor` and the report answer to "negative chosen reward: expected or harmful?", by
the first test that applies. Intervals are over prompts; of held-out pairs, or of training pairs
where there are none.

| | test | answer |
|---|---|---|"""

_CHECK = "**undecided**: check the reference"
TESTS = (
    (
        "no probe: a trainer's logs alone",
        f"**not negative** where the last {decision.RECENT} lines say so, else **undecided**",
    ),
    ("the 95 % interval of the chosen reward reaches 0", "**not negative**"),
    (
        "before step 1 policy and reference differed by "
        f"{reference.START_LEAST:g} nats an answer or more, and by {decision.START_SHARE:.0%} of "
        "the whole decline",
        _CHECK,
    ),
    (
        "the KL identity does not hold on the reference's own responses: 0 lies outside the "
        f"{decision.BROKEN:.1%} interval, and the two sides are {reference.LEAST_BREAK:g} nats and "
        f"{reference.LEAST_BREAK_SHARE:.0%} of the divergence apart",
        _CHECK,
    ),
    (
        "chosen answers lost more than KL(ref, pi) in their own states (`chosen_beyond_kl`), by "
        f"{displacement.LEAST_EXCESS:g} nat and {displacement.LEAST_EXCESS_SHARE:.0%} of the "
        f"decline, 0 outside the {decision.SURE:.0%} interval",
        "**harmful**; **undecided** where `sft_surprise` lies "
        f"{reference.SFT_LEAST:g} nats a token or more away from 0, its 95 % interval beyond "
        f"{reference.SFT_USUAL:g}, and none of the next three holds: where the reference's own "
        "answers are better than the chosen ones, the best policy lowers them so",
    ),
    (
        f"the policy's own likelihood ranks {learning.LEAST_RANKING:.0%} fewer pairs rightly than "
        f"the reference's did (`ranking_accuracy` less `ref_ranking_accuracy`, at "
        f"{decision.SURE:.0%})",
        "**harmful**",
    ),
    (
        "where the answers part the chosen token lost (`fork_chosen`), and "
        f"{displacement.LEAST_TOWARD:g} of probability moved to tokens like the rejected one "
        f"(`fork_toward`, at {decision.SURE:.0%})",
        "**harmful**",
    ),
    (
        "the policy's samples are less like the chosen answers than the reference's were, by "
        f"{decision.LEAST_LIKENESS:g} (`sample_likeness` less `ref_likeness`, at "
        f"{decision.SURE:.0%}; samples of the last {decision.POOLED} readings that have any)",
        "**harmful**",
    ),
    (
        "the 95 % interval of `chosen_beyond_kl` does not exclude a loss that would matter",
        "**undecided**: it says how many pairs would tell",
    ),
    (
        f"chosen answers lost {decline.LEAST_FALL:g} nats or more, and the 95 % interval of the "
        "margin reaches 0: the policy left its reference without telling the answers apart",
        "**undecided**: an earlier checkpoint, a lower learning rate",
    ),
    (
        f"where the answers part the chosen token lost {displacement.LEAST_FORK:g}, and tokens of "
        "neither answer got half of it or more",
        "**undecided**: a better third answer would look the same; read samples",
    ),
    ("none of these", "**expected**"),
)
"""Of `tokenq.monitor.decision`, in its order."""


def page() -> str:
    """The page as it should be."""
    return "\n".join([_HEAD, *_measures(), _VERDICT, *_tests(), _FINDINGS, *_findings()]) + "\n"


def _measures() -> Iterator[str]:
    for group, title in GROUPS.items():
        yield f"\n### {title}\n"
        yield "| `likelihood/` | definition | unit | source | cost |"
        yield "|---|---|---|---|---|"
        for name, each in MEASURES.items():
            short = name.removeprefix("likelihood/")
            if each.group != group or short.startswith("train_"):
                continue
            mark = " †" if f"likelihood/train_{short}" in MEASURES else ""
            cells = (each.definition, each.unit, each.source, each.cost)
            yield " | ".join([f"| `{short}`{mark}", *map(_cell, cells)]) + " |"


def _tests() -> Iterator[str]:
    for number, (test, answer) in enumerate(TESTS, 1):
        yield f"| {number} | {test} | {answer} |"


def _findings() -> Iterator[str]:
    for name, rule in RULES.items():
        yield f"| `{name}` | {_cell(rule.definition)} | {rule.needs} | {_cell(THRESHOLDS[name])} |"


def _cell(text: str) -> str:
    """As a cell of a table, in which what stands in pi, pi_ref and so on is not emphasis."""
    return text.replace("|", "\\|").replace("*", "\\*").replace("_", "\\_").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
