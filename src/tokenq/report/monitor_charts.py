"""What the monitor's figures show, as data: lines over optimiser steps with their intervals.

How they are drawn is in `monitor_figures.py`; the page's tables are made of the same lines.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tokenq.monitor.identity import Interval
from tokenq.monitor.readings import HELD_OUT, History, Reading, Setup
from tokenq.monitor.summary import Values, values

_REWARD, _NATS, _SHARE, _TOKENS = "β·nats", "nats", "share", "tokens"
_PART_ROLES = {"shared": "ink", "first": "accent", "later": "chosen", "end": "second"}
_PART_LABELS = {
    "shared": "shared beginning",
    "first": "first difference",
    "later": "what follows",
    "end": "end token",
}


@dataclass(frozen=True)
class Line:
    """One measure over the run.

    role:   which colour and dashes, see `monitor_figures.ROLES`
    points: (step, estimate); an interval without ends is drawn without a band
    """

    measure: str
    label: str
    role: str
    points: Sequence[tuple[int, Interval]]


@dataclass(frozen=True)
class Cloud:
    """Dots of one kind: a pair each, or a probe each where they are joined."""

    label: str
    role: str
    x: Sequence[float]
    y: Sequence[float]
    joined: bool = False


@dataclass(frozen=True)
class Chart:
    """One figure.

    group:  of the page, a key of :data:`GROUPS`
    unit:   of the vertical axis
    note:   how to read it
    level:  a value worth a line across, such as 0
    clouds: instead of lines, what is drawn over `x_label`
    """

    name: str
    group: str
    title: str
    unit: str
    note: str
    lines: Sequence[Line] = ()
    level: float | None = None
    clouds: Sequence[Cloud] = ()
    x_label: str = "step"

    @property
    def measures(self) -> list[str]:
        """Names of the measures in it."""
        return [line.measure for line in self.lines]


GROUPS = {
    "likelihood": "What became more and less likely",
    "identity": "The identity: how far likelihoods must fall",
    "parts": "Where in the answer",
    "displacement": "Where the probability went",
    "drift": "How far from the reference",
    "accuracy": "Which answer is preferred, and how surely",
    "samples": "What the policy writes",
    "pairs": "What the pairs push on",
    "logs": "From the trainer’s logs",
}
"""Groups of figures in their order, with the headings that the page gives them."""


@dataclass(frozen=True)
class _Plan:
    """A chart of lines before there are values; lines are (measure, label, role)."""

    name: str
    group: str
    title: str
    unit: str
    note: str
    lines: Sequence[tuple[str, str, str]]
    level: float | None = None
    prefix: str = field(default="likelihood/")


def _parts(side: str) -> list[tuple[str, str, str]]:
    return [
        (f"{side}_reward_{part}", label, _PART_ROLES[part]) for part, label in _PART_LABELS.items()
    ]


_PLANS = (
    _Plan(
        "rewards", "likelihood", "Implicit rewards", _REWARD,
        "Below 0: less likely than under the reference. Responses that the reference itself wrote "
        "must fall (their mean is −β·KL); chosen answers need not.",
        [
            ("chosen_reward", "chosen", "chosen"),
            ("rejected_reward", "rejected", "rejected"),
            ("expected_reward", "reference’s responses", "accent"),
        ],
        0.0,
    ),
    _Plan(
        "margin", "likelihood", "Margin", _REWARD,
        "Chosen less rejected reward: all that the objective sees. It grows whether the chosen "
        "answer rises or falls.",
        [("margin", "held-out pairs", "chosen"), ("train_margin", "pairs trained on", "second")],
        0.0,
    ),
    _Plan(
        "logps", "likelihood", "Absolute likelihood", _NATS,
        "Log-probability of whole answers under the policy.",
        [("chosen_logps", "chosen", "chosen"), ("rejected_logps", "rejected", "rejected")],
    ),
    _Plan(
        "trained", "likelihood", "Pairs trained on", _REWARD,
        "The same rewards on pairs that training has seen; the gap to the held-out pairs is what "
        "was learned by heart.",
        [
            ("train_chosen_reward", "chosen", "chosen"),
            ("train_rejected_reward", "rejected", "rejected"),
        ],
        0.0,
    ),
    _Plan(
        "identity", "identity", "Both sides of the identity", _REWARD,
        "The mean reward of the reference’s own responses, from the tokens it drew, and −β·KL, "
        "computed over the whole vocabulary. They estimate the same number.",
        [
            ("expected_reward", "mean implicit reward", "accent"),
            ("minus_beta_kl", "−β·KL(reference ‖ policy)", "ink"),
        ],
        0.0,
    ),
    _Plan(
        "identity_gap", "identity", "Their difference", _REWARD,
        "Response by response. The band must hold 0; if not, the responses are not the "
        "reference’s, or log-probabilities are wrong.",
        [("identity_gap", "difference", "accent")],
        0.0,
    ),
    _Plan(
        "excess_decline", "identity", "Fall of the chosen answer beyond the identity",
        "β·nats a token",
        "Reward per token of the chosen answers less that of the reference’s own responses. Near "
        "or above 0: the fall is what leaving the reference costs. Below: chosen answers lose more "
        "than that.",
        [("excess_decline", "chosen answers", "chosen")],
        0.0,
    ),
    _Plan(
        "chosen_parts", "parts", "Chosen answers by part", _REWARD,
        "The objective cancels what both answers begin with: what happens there is a side effect.",
        _parts("chosen"),
        0.0,
    ),
    _Plan(
        "rejected_parts", "parts", "Rejected answers by part", _REWARD,
        "The parts add up to the answer’s reward.",
        _parts("rejected"),
        0.0,
    ),
    _Plan(
        "forks", "displacement", "Where the two answers part", "probability",
        "Mean probability at the first token that differs, as a change since the reference. Mass "
        "on other tokens is displaced: neither answer has got it.",
        [
            ("fork_chosen", "chosen token", "chosen"),
            ("fork_rejected", "rejected token", "rejected"),
            ("fork_other", "all other tokens", "second"),
        ],
        0.0,
    ),
    _Plan(
        "beyond_kl", "displacement", "Loss beyond the identity, state by state", _REWARD,
        "What each answer lost or won beyond what the reference’s own tokens lose on average in "
        "the same states. 0 for answers that the reference wrote.",
        [
            ("chosen_beyond_kl", "chosen", "chosen"),
            ("rejected_beyond_kl", "rejected", "rejected"),
        ],
        0.0,
    ),
    _Plan(
        "fork_toward", "displacement", "Displaced mass by meaning", "probability",
        "Mass that other tokens gained at the fork: above 0 it went to tokens nearer to the chosen "
        "one, below 0 to tokens nearer to the rejected one.",
        [("fork_toward", "nearer to chosen less nearer to rejected", "second")],
        0.0,
    ),
    _Plan(
        "peak", "displacement", "Squeezing of the most probable token", "nats",
        "Change of the log-probability of the most probable token in the answer’s states, since "
        "the reference. Rising while both answers fall: mass is squeezed into the argmax.",
        [
            ("peak_chosen", "on chosen answers", "chosen"),
            ("peak_rejected", "on rejected answers", "rejected"),
        ],
        0.0,
    ),
    _Plan(
        "kl", "drift", "Divergence, both ways", _NATS,
        "For a whole response. KL(reference ‖ policy) from the reference’s responses; KL(policy ‖ "
        "reference) from samples of the policy.",
        [
            ("kl_ref_policy", "KL(reference ‖ policy)", "accent"),
            ("kl_policy_ref", "KL(policy ‖ reference)", "second"),
            ("kl_reverse_states", "the same, reference’s states", "ink"),
        ],
        0.0,
    ),
    _Plan(
        "entropy", "drift", "Entropy of the next token", _NATS,
        "Mean over the states of each kind of text.",
        [
            ("entropy_chosen", "chosen", "chosen"),
            ("entropy_rejected", "rejected", "rejected"),
            ("entropy_responses", "reference’s", "accent"),
        ],
    ),
    _Plan(
        "accuracies", "accuracy", "Pairs in the right order", "share of pairs",
        "By implicit reward, which training reports, and by the policy’s own likelihood, which "
        "decides what it writes.",
        [
            ("accuracy", "implicit reward", "chosen"),
            ("ranking_accuracy", "likelihood", "rejected"),
            ("ranking_accuracy_per_token", "likelihood per token", "second"),
            ("ref_ranking_accuracy", "reference’s likelihood", "accent"),
        ],
        0.5,
    ),
    _Plan(
        "overconfidence_pairs", "accuracy", "Overconfidence about pairs", _SHARE,
        "Mean Bradley-Terry confidence less accuracy. 0 is calibrated; above, margins say more "
        "than they can keep.",
        [
            ("overconfidence_pairs", "held-out pairs", "chosen"),
            ("train_overconfidence_pairs", "pairs trained on", "second"),
        ],
        0.0,
    ),
    _Plan(
        "overconfidence_tokens", "accuracy", "Overconfidence about tokens", "probability",
        "Expected less actual probability of the chosen answers’ tokens. 0 is calibrated.",
        [
            ("overconfidence_tokens", "held-out pairs", "chosen"),
            ("train_overconfidence_tokens", "pairs trained on", "second"),
            ("ref_overconfidence_tokens", "reference, held-out pairs", "accent"),
        ],
        0.0,
    ),
    _Plan(
        "sample_tokens", "samples", "Length of samples", _TOKENS,
        "Responses that the policy writes at temperature 1, cut at the probe’s length.",
        [("sample_tokens", "policy", "second"), ("ref_tokens", "reference", "accent")],
    ),
    _Plan(
        "sample_repetition", "samples", "Repetition", _SHARE,
        "Share of 3-grams of tokens that occurred before in the same response.",
        [("sample_repetition", "policy", "second"), ("ref_repetition", "reference", "accent")],
    ),
    _Plan(
        "sample_ended", "samples", "Responses that end", _SHARE,
        "Share that ends by itself before the probe’s length.",
        [("sample_ended", "policy", "second"), ("ref_ended", "reference", "accent")],
    ),
    _Plan(
        "sample_likeness", "samples", "Whom samples are like", "cosine",
        "Similarity of hidden states to the chosen answer less that to the rejected one. Falling: "
        "the policy writes what it was taught not to.",
        [("sample_likeness", "policy", "second"), ("ref_likeness", "reference", "accent")],
        0.0,
    ),
    _Plan(
        "gradients", "pairs", "Gradients of the two answers", "cosine",
        "Near 1, a step that lowers the rejected answer lowers the chosen one too.",
        [
            ("gradient_cosine", "held-out pairs", "chosen"),
            ("train_gradient_cosine", "pairs trained on", "second"),
        ],
        0.0,
    ),
    _Plan(
        "chosen_change", "pairs", "Pairs whose chosen answer a step lowers", "share of pairs",
        "To first order, with a step along the pair’s own margin and only the head moving.",
        [
            ("chosen_change", "held-out pairs", "chosen"),
            ("train_chosen_change", "pairs trained on", "second"),
        ],
    ),
    _Plan(
        "log_rewards", "logs", "Rewards", _REWARD,
        "Means over training batches, as the trainer logged them.",
        [
            ("rewards/chosen", "chosen", "chosen"),
            ("rewards/rejected", "rejected", "rejected"),
            ("eval_rewards/chosen", "chosen, evaluation", "accent"),
            ("eval_rewards/rejected", "rejected, evaluation", "second"),
        ],
        0.0, "",
    ),
    _Plan(
        "log_margins", "logs", "Margin", _REWARD, "Mean over training batches.",
        [
            ("rewards/margins", "training", "chosen"),
            ("eval_rewards/margins", "evaluation", "second"),
        ],
        0.0, "",
    ),
    _Plan(
        "log_logps", "logs", "Log-probabilities", _NATS, "Of whole answers, under the policy.",
        [
            ("logps/chosen", "chosen", "chosen"),
            ("logps/rejected", "rejected", "rejected"),
            ("eval_logps/chosen", "chosen, evaluation", "accent"),
            ("eval_logps/rejected", "rejected, evaluation", "second"),
        ],
        None, "",
    ),
    _Plan(
        "log_accuracies", "logs", "Accuracy of the implicit reward", "share of pairs",
        "Share of pairs with a margin above 0.",
        [
            ("rewards/accuracies", "training", "chosen"),
            ("eval_rewards/accuracies", "evaluation", "second"),
        ],
        0.5, "",
    ),
    _Plan(
        "log_loss", "logs", "Loss", "nats", "",
        [("loss", "training", "chosen"), ("eval_loss", "evaluation", "second")], None, "",
    ),
    _Plan(
        "log_grad_norm", "logs", "Gradient norm", "", "", [("grad_norm", "norm", "soft")], 0.0, "",
    ),
)  # fmt: skip


REFERENCE = (
    ("likelihood/start_gap", "distance of policy and reference at the start"),
    ("likelihood/sft_gap", "SFT gap: how foreign the chosen answers are to the reference"),
    ("likelihood/sft_surprise", "the same, state by state"),
    ("likelihood/ref_entropy", "entropy of the reference on its own responses"),
    ("likelihood/ches_normalised", "similarity of the two answers of a pair (CHES)"),
)
"""What is measured once, with labels: a number each, and no figure."""


def charts(history: History, known: Values | None = None) -> list[Chart]:
    """Every figure that the history has values for, in the order of the page.

    known: the history's `values`, where they are at hand
    """
    known = values(history) if known is None else known
    found = [chart for plan in _PLANS if (chart := _chart(plan, known)) is not None]
    if history.setup is not None and history.readings:
        found += [_margin_path(known), *_similarities(history.setup, history.readings[-1])]
    order = list(GROUPS)
    return sorted(found, key=lambda chart: order.index(chart.group))


def _chart(plan: _Plan, known: Values) -> Chart | None:
    lines = [
        Line(plan.prefix + measure, label, role, known[plan.prefix + measure])
        for measure, label, role in plan.lines
        if plan.prefix + measure in known
    ]
    if not lines:
        return None
    return Chart(plan.name, plan.group, plan.title, plan.unit, plan.note, lines, plan.level)


def _margin_path(known: Values) -> Chart:
    """Of held-out pairs, or of those trained on where no others are read."""
    prefix = "likelihood/" if "likelihood/margin" in known else "likelihood/train_"
    margin = dict(known[f"{prefix}margin"])
    clouds = []
    for side in ("chosen", "rejected"):
        points = [
            (margin[step].mean, reward.mean)
            for step, reward in known[f"{prefix}{side}_reward"]
            if step in margin
        ]
        clouds.append(
            Cloud(side, side, [x for x, _ in points], [y for _, y in points], joined=True)
        )
    return Chart(
        "margin_path", "likelihood", "Margin against absolute likelihood", _REWARD,
        "One dot a probe. The same margin can be had with the chosen answer rising or falling: the "
        "objective does not tell them apart.",
        level=0.0, clouds=clouds, x_label="margin, β·nats",
    )  # fmt: skip


def _similarities(setup: Setup, reading: Reading) -> list[Chart]:
    """Each pair's similarity, as it was before training, against what happened to it."""
    change = reading.pairs.logps[0].sum(0) - setup.baseline.ref_logps[0].sum(0)
    similarity = setup.baseline.ches_normalised
    held_out = np.array([pair.source == HELD_OUT for pair in setup.probe.pairs])
    fine = np.isfinite(change) & np.isfinite(similarity)
    clouds = [
        Cloud(label, role, similarity[chosen].tolist(), change[chosen].tolist())
        for label, role, of_kind in (
            ("held-out pairs", "chosen", held_out),
            ("pairs trained on", "second", ~held_out),
        )
        if (chosen := fine & of_kind).any()
    ]
    if not clouds:
        return []
    return [
        Chart(
            "ches", "pairs", f"Similarity and decline, step {reading.step}", _NATS,
            "Each dot is a pair: how alike its answers were to the reference (length-normalised "
            "CHES), and how much log-probability its chosen answer has gained or lost.",
            level=0.0, clouds=clouds, x_label="CHES of the pair, before training",
        )
    ]  # fmt: skip
