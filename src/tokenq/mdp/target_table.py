"""What every objective converges to on a bandit, as data: tests, experiment and page read it.

A law is about the exact expected loss over all policies of answers of one step; with steps the sum
of their log-ratios takes the place of the log-ratio. Rows of reward access (BDA to PRA) are
reconstructed; the others were derived from the losses as written in `tokenq.objectives` and are
held to them by the tests.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from torch import Tensor

from tokenq.mdp import laws
from tokenq.mdp.targets import PreferenceBandit

Access = Literal["BDA", "RA", "RDA", "PRA", "rankings", "labels", "demonstrations"]
"""What is told about the reward: all of it, its value at samples, differences, who wins, the
order of a list, good or bad, or nothing but good answers."""

ClosedForm = Callable[[PreferenceBandit], Tensor]
Scope = Literal["any labels", "Bradley-Terry labels", "flipped labels", "two answers", "none"]


@dataclass(frozen=True)
class Target:
    """What one objective converges to. `tau` is its temperature, `beta` or as `temperature` says.

    access:        what it is told about the reward; "-P" where a reference is the prior
    law:           its limit in words and symbols; w: win rate against the coverage
    temperature:   what the temperature does to it
    data:          what the coverage does to it
    noise:         what wrong labels do to it
    rate:          what decides the speed of gradient descent in the logits
    closed_form:   the limit as a function, None where there is none
    scope:         for which problems the closed form holds; it raises ValueError for others
    objective:     name in `OBJECTIVES`; "" for the losses of `tokenq.mdp.targets`
    settings:      hyper-parameters other than the temperature that this row is about
    scale:         name of the hyper-parameter that is the temperature; "" where there is none
    reconstructed: the formula was rebuilt without the primary text
    """

    access: Access
    law: str
    temperature: str
    data: str
    noise: str
    rate: str
    closed_form: ClosedForm | None = None
    scope: Scope = "none"
    objective: str = ""
    settings: Mapping[str, float | str | bool] = field(default_factory=dict)
    scale: str = "beta"
    reconstructed: bool = False


# What several rows say

BOLTZMANN = "pi_ref exp(r/tau)/Z"
TILT = "interpolates: pi_ref at infinity, the best answer at 0"
TILT_OF_UNIFORM = TILT + " (uniform in place of pi_ref)"
ANY_COVERAGE = "no effect while every answer is in some pair; an answer in none keeps its logit"
OPEN = "no effect while every answer is in some pair; of one in none even the logit moves"
COMPROMISE = "coverage decides which margins win: they are no differences of scores"
FLATTER = "flips flatten it, and it is Bradley-Terry no more; labels without noise: no finite limit"
RATIO = "tau^2 times the pair Laplacian weighted by P(1-P)"
SLOPES = RATIO + ", each answer by its slope t f''(t), t = pi/pi_ref"
CHOICES = "tau^2 times the covariance of each choice among the answers that are left"
BOUNDED = "bounded wants: finite even for labels without noise"
NO_LIMIT = "no finite limit"

ROBUST_RATE = 0.1
EXO_RATE = 0.05
GAMMA = 0.5


def _logistic(
    objective: str,
    law: str = BOLTZMANN,
    *,
    access: Access = "PRA",
    temperature: str = TILT,
    data: str = ANY_COVERAGE,
    rate: str = RATIO,
    closed_form: ClosedForm = laws.logistic_law,
    **settings: float | str | bool,
) -> Target:
    """A loss that is the likelihood of Bradley-Terry labels in some implicit reward."""
    return Target(
        access,
        law,
        temperature,
        data,
        FLATTER,
        rate,
        closed_form,
        "Bradley-Terry labels",
        objective,
        settings,
    )


def _under_divergence(divergence: laws.Divergence, law: str, **settings: Any) -> Target:
    """DPO held near the reference by another divergence than the reverse KL."""
    return _logistic(
        "dpo",
        law,
        data=OPEN,
        rate=SLOPES,
        closed_form=partial(laws.divergence_law, divergence=divergence),
        f_divergence_type=divergence,
        **settings,
    )


def _with_target_margin(objective: str, **settings: float) -> Target:
    """A reference-free loss whose margins shall reach GAMMA."""
    return Target(
        "PRA",
        "exp(r/tau)/Z with every margin stretched by gamma",
        TILT_OF_UNIFORM,
        COMPROMISE,
        FLATTER,
        RATIO,
        lambda bandit: laws.two_answer_law(
            bandit.without_reference(), partial(laws.target_margin, gamma=GAMMA)
        ),
        "two answers",
        objective,
        settings,
    )


TARGETS: dict[str, Target] = {
    "BDA": Target(
        "BDA",
        BOLTZMANN,
        TILT,
        "none: an expectation over the policy itself",
        "none",
        "diag(p) - p p^T at the law: falls with its rarest answer",
        lambda bandit: bandit.target,
        "any labels",
        reconstructed=True,
    ),
    "BDA forward": Target(
        "BDA",
        BOLTZMANN,
        TILT,
        "samples of the target",
        "none",
        "as BDA at the law; convex everywhere",
        lambda bandit: bandit.target,
        "any labels",
        reconstructed=True,
    ),
    "RA": Target(
        "RA",
        BOLTZMANN,
        TILT,
        "one uncovered answer is what the others leave, since log Z is known",
        "none",
        "2 tau^2 sum_i mu_i (e_i - p)(e_i - p)^T",
        lambda bandit: bandit.target,
        "any labels",
        reconstructed=True,
    ),
    "RDA": Target(
        "RDA",
        BOLTZMANN,
        TILT,
        ANY_COVERAGE,
        "none",
        "2 tau^2 times the pair Laplacian: one number for uniform pairs, quadratic everywhere",
        laws.told_law,
        "any labels",
        reconstructed=True,
    ),
    "PRA": Target(
        "PRA",
        BOLTZMANN,
        TILT,
        ANY_COVERAGE,
        "none: told the probabilities",
        RATIO,
        laws.told_law,
        "any labels",
        reconstructed=True,
    ),
    "dpo": _logistic("dpo"),
    "sigmoid_norm": _logistic("sigmoid_norm", BOLTZMANN + " with log-ratios per token"),
    "dpo, label_smoothing": Target(
        "PRA",
        "DPO's for the labels (1-2e) P + e",
        TILT,
        COMPROMISE,
        BOUNDED + ": margins end at log((1-e)/e)/tau",
        RATIO,
        partial(laws.smoothed_law, smoothing=ROBUST_RATE),
        "two answers",
        "dpo",
        {"label_smoothing": ROBUST_RATE},
    ),
    "robust": Target(
        "PRA",
        BOLTZMANN + " of the labels before flips at rate e",
        TILT,
        ANY_COVERAGE,
        "undoes flips at its own rate exactly; no limit where labels are cleaner than e",
        RATIO,
        partial(laws.robust_law, smoothing=ROBUST_RATE),
        "flipped labels",
        "robust",
        {"label_smoothing": ROBUST_RATE},
    ),
    "dpo, forward_kl": _under_divergence("forward_kl", "pi_ref tau/(lambda - r)"),
    "dpo, js_divergence": _under_divergence("js_divergence", "pi_ref / (exp((lambda-r)/tau) - 1)"),
    "dpo, alpha_divergence": _under_divergence(
        "alpha_divergence",
        "pi_ref ((1-a) (lambda-r)/tau)^(-1/(1-a))",
        f_alpha_divergence_coef=0.5,
    ),
    "dpo, use_weighting": _logistic(
        "dpo",
        BOLTZMANN + ": a fixed point, since the weights take no gradient",
        rate=RATIO + " and by the weights",
        use_weighting=True,
    ),
    "dpop": Target(
        "PRA",
        "between pi_ref and DPO's: chosen answers below pi_ref are held up, and some always are",
        TILT,
        COMPROMISE,
        FLATTER,
        "kinks at pi = pi_ref",
        objective="dpop",
        settings={"dpop_lambda": 5.0},
    ),
    "ipo": Target(
        "PRA",
        "pi_ref exp((w - 1/2)/tau)/Z",
        TILT + ", of the win rate",
        "the win rate is against the coverage",
        BOUNDED + "; flips shrink w - 1/2 by 1-2e",
        "2 times the pair Laplacian, without tau; quadratic",
        laws.win_rate_law,
        "any labels",
        "ipo",
    ),
    "hinge": Target(
        "PRA",
        "margins of 1/tau towards the more frequent winner",
        "scales the margins; not the temperature of a reward",
        COMPROMISE,
        "none below one half; labels without noise: any margin beyond 1/tau",
        "piecewise linear: plain descent circles the limit at the size of its step",
        lambda bandit: laws.two_answer_law(bandit, laws.hinge_margin),
        "two answers",
        "hinge",
    ),
    "exo_pair": Target(
        "PRA",
        "margins (2P-1) log((1-e)/e)/tau",
        TILT,
        COMPROMISE,
        BOUNDED,
        "not convex: flat far away",
        lambda bandit: laws.two_answer_law(bandit, partial(laws.exo_margin, smoothing=EXO_RATE)),
        "two answers",
        "exo_pair",
        {"label_smoothing": EXO_RATE},
    ),
    "discopop": Target(
        "PRA",
        "margins above the log-odds: (1-P) e^2m = P (1 + e^m) for P > 1/2, small discopop_tau",
        TILT,
        COMPROMISE,
        FLATTER,
        "not convex near 0: two minima where a pair is a tie",
        objective="discopop",
    ),
    "nca_pair": Target(
        "PRA",
        "log-ratios near log(2w)/tau, as far as probabilities that sum to 1 allow",
        "scales the log-ratios",
        "the win rate is against the coverage, and so is the weight of an answer",
        "losers that never win have no finite limit",
        "convex in the log-ratios",
        objective="nca_pair",
    ),
    "bco_pair": Target(
        "PRA",
        "log-ratios near logit(w)/tau, as far as probabilities that sum to 1 allow",
        "scales the log-ratios",
        "the win rate is against the coverage, and so is the weight of an answer",
        "winners that never lose are bounded by the sum only",
        "convex in the log-ratios",
        objective="bco_pair",
    ),
    "sppo_hard": Target(
        "PRA",
        "log-ratios near (w - 1/2)/tau, as far as probabilities that sum to 1 allow",
        "scales the log-ratios",
        "the win rate is against the coverage, and so is the weight of an answer",
        BOUNDED,
        "quadratic in the log-ratios, without tau",
        objective="sppo_hard",
    ),
    "apo_zero": Target(
        "PRA",
        NO_LIMIT + ": answers that win less than half are emptied",
        "how sharply",
        "the win rate is against the coverage",
        "no effect on which are emptied, up to one half",
        "sigmoids saturate: slower and slower",
        objective="apo_zero",
    ),
    "apo_down": Target(
        "PRA",
        "depends on the data: chosen answers are pushed down too, mass goes to what is seldom seen",
        "how sharply",
        "decides it: uncovered answers gain",
        "as apo_zero",
        "sigmoids saturate; not convex",
        objective="apo_down",
    ),
    "aot": Target(
        "PRA",
        "margins above the reference's by quantiles: no law of single answers",
        "scales the margins",
        "quantiles are of the batch",
        "labels without noise: " + NO_LIMIT,
        "of the sorted batch",
        objective="aot",
    ),
    "aot_unpaired": Target(
        "PRA",
        NO_LIMIT + ": log-ratios that follow the win rates can be spread for ever at a gain",
        "how sharply",
        "quantiles are of the batch",
        "none on that: lost pairs cost nothing once the sides are sorted apart",
        "of the sorted batch",
        objective="aot_unpaired",
    ),
    "simpo, simpo_gamma=0": _logistic(
        "simpo",
        "exp(r/tau)/Z, of probabilities per token",
        temperature=TILT_OF_UNIFORM,
        closed_form=laws.uniform_prior_law,
        simpo_gamma=0.0,
    ),
    "simpo": _with_target_margin("simpo", simpo_gamma=GAMMA),
    "alphapo": Target(
        "PRA",
        "that of f-DPO with order 1 - alpha and a uniform reference, at gamma = 0",
        TILT_OF_UNIFORM,
        COMPROMISE,
        FLATTER,
        "steep where an answer is rare",
        objective="alphapo",
        settings={"alpha": 0.25, "simpo_gamma": GAMMA},
    ),
    "cpo, cpo_alpha=0": _logistic(
        "cpo",
        "exp(r/tau)/Z",
        temperature=TILT_OF_UNIFORM,
        closed_form=laws.uniform_prior_law,
        cpo_alpha=0.0,
    ),
    "cpo": Target(
        "PRA",
        "between exp(r/tau)/Z and the law of chosen answers",
        TILT_OF_UNIFORM,
        "the law of chosen answers follows it",
        FLATTER.split(";")[0] + "; the likelihood term keeps it finite",
        "sum of both",
        objective="cpo",
    ),
    "orpo": Target(
        "PRA",
        "between the law of chosen answers and odds proportional to exp(r)",
        "weight of the odds, no temperature",
        "the law of chosen answers follows it",
        FLATTER.split(";")[0],
        "sum of both",
        objective="orpo",
    ),
    "sft": Target(
        "demonstrations",
        "the law of chosen answers",
        "none",
        "copied: an answer twice as often chosen is twice as likely",
        "copied",
        "diag(p) - p p^T: falls with the rarest answer",
        laws.chosen_law,
        "any labels",
        "sft",
        scale="",
    ),
    "kto": Target(
        "labels",
        NO_LIMIT + ": answers that win less than half are emptied",
        "how sharply",
        "the win rate is against the coverage",
        "no effect on which are emptied, up to one half",
        "sigmoids saturate: slower and slower",
        objective="kto",
    ),
    "apo_zero_unpaired": Target(
        "labels",
        NO_LIMIT + ": answers that win less than half are emptied",
        "how sharply",
        "the win rate is against the coverage",
        "no effect on which are emptied, up to one half",
        "sigmoids saturate: slower and slower",
        objective="apo_zero_unpaired",
    ),
    "bco": Target(
        "labels",
        "log-ratios near (logit(w) + c)/tau, c from the moving point delta: a fixed point",
        "scales the log-ratios",
        "the win rate is against the coverage, and so is the weight of an answer",
        "labels without noise: " + NO_LIMIT,
        "convex in the log-ratios for a given delta",
        objective="bco",
    ),
    "plackett_luce": _logistic("plackett_luce", access="rankings", rate=CHOICES),
    "softmax_dpo": _logistic("softmax_dpo", access="rankings", rate=CHOICES),
    "lipo": Target(
        "rankings",
        "near " + BOLTZMANN + ": the weights depend on the order that was drawn",
        TILT,
        COMPROMISE,
        FLATTER,
        RATIO + ", each pair by its lambda",
        objective="lipo",
    ),
    "tpo": Target(
        "rankings",
        "between exp(r/tau)/Z and the law of best answers",
        TILT_OF_UNIFORM,
        "the law of best answers follows it",
        FLATTER.split(";")[0],
        "sum of both",
        objective="tpo",
    ),
    "tdpo, tdpo_form=tdpo1": _logistic(
        "tdpo", BOLTZMANN + ": the divergences of both sides cancel", tdpo_form="tdpo1"
    ),
    "tdpo": Target(
        "PRA",
        "DPO's, pulled towards pi_ref: a fixed point, since one divergence takes no gradient",
        TILT,
        COMPROMISE,
        "labels without noise: the pull fades with the margin, " + NO_LIMIT,
        RATIO,
        objective="tdpo",
    ),
    "tgdpo": Target(
        "PRA",
        "follows the token rewards that it is given; with none it is DPO's",
        TILT,
        COMPROMISE,
        FLATTER,
        "of two weights for each answer",
        objective="tgdpo",
    ),
    "sepo": _logistic(
        "sepo",
        "exp(r/tau)/Z, of selected tokens",
        temperature=TILT_OF_UNIFORM,
        closed_form=laws.uniform_prior_law,
    ),
    "bmc, delta=1": _logistic(
        "bmc",
        "pi_ref exp(r/(2 tau))/Z where all is edited: delta <= 1 only scales tau by 1 + delta",
        closed_form=partial(laws.weighted_law, weight=2.0),
        delta=1.0,
    ),
    "bmc": Target(
        "PRA",
        "(1 + min(1/pi, delta)) log pi/pi_ref = (r - lambda)/tau on edited answers: a fixed point",
        TILT + ", (1+delta) tau for rare answers",
        OPEN,
        FLATTER,
        RATIO + ", each answer by its weight",
        objective="bmc",
    ),
    "cpl, contrastive_bias=1": Target(
        "PRA",
        "exp(r/tau)/Z",
        TILT_OF_UNIFORM + "; cpl_alpha",
        ANY_COVERAGE,
        FLATTER,
        RATIO,
        laws.uniform_prior_law,
        "Bradley-Terry labels",
        "cpl",
        {"contrastive_bias": 1.0},
        "cpl_alpha",
    ),
    "cpl, cpl_kl, contrastive_bias=1": Target(
        "PRA",
        BOLTZMANN,
        TILT + "; cpl_alpha",
        ANY_COVERAGE,
        FLATTER,
        RATIO,
        laws.logistic_law,
        "Bradley-Terry labels",
        "cpl",
        {"contrastive_bias": 1.0, "cpl_form": "cpl_kl"},
        "cpl_alpha",
    ),
    "cpl": Target(
        "PRA",
        "not exp(r/tau)/Z: being in the data counts beside winning",
        "scales the log-probabilities; cpl_alpha",
        "more mass on what is compared; decides where margins are no differences",
        FLATTER.split(";")[0],
        "convex in the log-probabilities",
        objective="cpl",
        settings={"contrastive_bias": 0.5},
        scale="cpl_alpha",
    ),
    "cpl_ranked, contrastive_bias=1": Target(
        "rankings",
        "exp(r/tau)/Z",
        TILT_OF_UNIFORM + "; cpl_alpha",
        ANY_COVERAGE,
        FLATTER,
        RATIO,
        laws.uniform_prior_law,
        "Bradley-Terry labels",
        "cpl_ranked",
        {"contrastive_bias": 1.0},
        "cpl_alpha",
    ),
    "cpl_plackett_luce, contrastive_bias=1": Target(
        "rankings",
        "exp(r/tau)/Z",
        TILT_OF_UNIFORM + "; cpl_alpha",
        ANY_COVERAGE,
        FLATTER,
        CHOICES,
        laws.uniform_prior_law,
        "Bradley-Terry labels",
        "cpl_plackett_luce",
        {"contrastive_bias": 1.0},
        "cpl_alpha",
    ),
    "dmpo": _logistic("dmpo", BOLTZMANN + " for one turn; of several, turn j at phi(j, n) tau"),
    "q_rm, q_rm_gamma=0": _logistic(
        "q_rm",
        "exp(r/tau)/Z, of mean logits",
        temperature=TILT_OF_UNIFORM,
        closed_form=laws.uniform_prior_law,
        q_rm_gamma=0.0,
    ),
    "q_rm": _with_target_margin("q_rm", q_rm_gamma=GAMMA),
    "implicit_prm": Target(
        "labels",
        "log-ratios near logit(w)/tau, as far as probabilities that sum to 1 allow",
        "scales the log-ratios",
        "the win rate is against the coverage, and so is the weight of an answer",
        "answers that never win have no finite limit",
        "convex in the log-ratios",
        objective="implicit_prm",
    ),
}
"""Row name and target. A row is an objective with the settings that its name or `settings` says."""
