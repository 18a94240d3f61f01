"""Which of the many measured signals figure and page show, and what they call them."""

from dataclasses import dataclass
from typing import Any

from tokenq.reproduce.localisation.analysis import ENSEMBLE, PLAIN
from tokenq.reproduce.localisation.arms import COIN, DPO, REWARD_MODEL, SFT
from tokenq.reproduce.localisation.tables import START

HEADLINE = {
    "errors": ("AUROC within", "AUROC of wrong tokens within a text"),
    "words": ("Spearman", "Spearman of words with human valence"),
}
"""The measure that figure and findings use, and its title, by kind of truth."""


WITHOUT_SIGNALS = ("surface", "tabular")
"""Tasks that are measured in ways of their own."""


@dataclass(frozen=True)
class Row:
    """One signal as it is shown: its title, and what was measured of it."""

    title: str
    arm: str
    signal: str
    is_credit: bool
    entry: dict[str, Any]


_SHOWN: tuple[tuple[str, str, str, bool], ...] = (
    ("DPO credit, plain", DPO.name, PLAIN, True),
    ("DPO credit, centred", DPO.name, "centred", True),
    ("DPO credit, policy-centred", DPO.name, "policy_centred", True),
    ("DPO credit, standardised", DPO.name, "standardised", True),
    ("DPO credit, half-referenced", DPO.name, "half_referenced", True),
    ("DPO credit, words", DPO.name, "words", True),
    ("DPO credit, standardised words", DPO.name, "standardised_words", True),
    ("DPO credit, mean of seeds", ENSEMBLE, PLAIN, True),
    ("DPO credit, mean of seeds, standardised", ENSEMBLE, "standardised", True),
    ("DPO credit, mean of seeds, standardised words", ENSEMBLE, "standardised_words", True),
    ("DPO after SFT, plain", "dpo after sft", PLAIN, True),
    ("DPO, differing sentence only, plain", "dpo, differing sentence", PLAIN, True),
    ("TDPO credit", "tdpo", PLAIN, True),
    ("BMC credit", "bmc", PLAIN, True),
    ("CPL credit, lambda 0.5", "cpl, bias 0.5", PLAIN, True),
    ("CPL credit, lambda 1", "cpl, bias 1", PLAIN, True),
    ("length-normalised DPO credit", "sigmoid_norm", PLAIN, True),
    ("implicit PRM credit", "implicit_prm", PLAIN, True),
    ("Q-RM logit", "q_rm", "logit", True),
    ("labels by coin, credit", COIN, PLAIN, False),
    ("contrast SFT / base", SFT, PLAIN, False),
    ("surprisal, base", START, "surprisal", False),
    ("surprisal, SFT", SFT, "surprisal", False),
    ("surprisal, DPO policy", DPO.name, "surprisal", False),
    ("surprisal of the word, base", START, "words' surprisal", False),
    ("entropy, base", START, "entropy", False),
    ("entropy, DPO policy", DPO.name, "entropy", False),
    ("prompt information, base", START, "prompt information", False),
    ("word not in the prompt", START, "not in the prompt", False),
    ("position", START, "position", False),
    ("token length", START, "length", False),
    ("gradient x input, base", START, "gradient x input", False),
    ("gradient x input, DPO", DPO.name, "gradient x input", False),
    ("reward model, prefix differences", REWARD_MODEL, "prefix difference", False),
)


def entry(task: dict[str, Any], arm: str, signal: str) -> dict[str, Any] | None:
    """What was measured of a signal, or None."""
    found: dict[str, Any] | None = task["arms"].get(arm, {}).get(signal)
    return found


def headline_rows(task: dict[str, Any], measure: str) -> list[Row]:
    """The signals that are shown, as far as the task has them, the best `measure` first."""
    rows = [
        Row(title, arm, signal, is_credit, found)
        for title, arm, signal, is_credit in _SHOWN
        if (found := entry(task, arm, signal)) is not None
        and found["measures"][measure]["value"] is not None
    ]
    return sorted(rows, key=lambda row: -row.entry["measures"][measure]["value"])
