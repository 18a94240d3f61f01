"""Token MDPs small enough to be solved exactly: the judge of objectives, credit and search.

Float64 throughout; imports numpy and torch only. Equations are those of "From r to Q*"
(arXiv 2404.12358).
"""

from tokenq.mdp.bandit import Bandit, BanditSolution
from tokenq.mdp.discounted import DiscountedMDP, DiscountedSolution, Segments
from tokenq.mdp.losses import expected_margin_loss, expected_pair_loss, step_logps, uniform_pairs
from tokenq.mdp.outcome import outcome_steps, soft_expectation
from tokenq.mdp.preferences import (
    Comparisons,
    bradley_terry,
    plackett_luce_logp,
    sample_comparisons,
    sample_rankings,
)
from tokenq.mdp.shaping import Equivalence, canonical, equivalence, inverse_bellman, shaped
from tokenq.mdp.target_table import TARGETS, Target
from tokenq.mdp.targets import PreferenceBandit, boltzmann
from tokenq.mdp.token_mdp import PolicyValue, Solution, TokenMDP
from tokenq.mdp.tree import Paths, PrefixTree
from tokenq.mdp.verification import (
    Check,
    Control,
    CounterExample,
    Verification,
    counter_example,
    verify,
)

__all__ = [
    "TARGETS",
    "Bandit",
    "BanditSolution",
    "Check",
    "Comparisons",
    "Control",
    "CounterExample",
    "DiscountedMDP",
    "DiscountedSolution",
    "Equivalence",
    "Paths",
    "PolicyValue",
    "PreferenceBandit",
    "PrefixTree",
    "Segments",
    "Solution",
    "Target",
    "TokenMDP",
    "Verification",
    "boltzmann",
    "bradley_terry",
    "canonical",
    "counter_example",
    "equivalence",
    "expected_margin_loss",
    "expected_pair_loss",
    "inverse_bellman",
    "outcome_steps",
    "plackett_luce_logp",
    "sample_comparisons",
    "sample_rankings",
    "shaped",
    "soft_expectation",
    "step_logps",
    "uniform_pairs",
    "verify",
]
