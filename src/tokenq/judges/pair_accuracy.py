"""Judge scored pairs: the implicit reward beside what is simpler than it.

Works on sums of log-probabilities; where these come from is `scoring`.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from tokenq.judges.accuracy import LEVEL, Accuracy, count_wins
from tokenq.judges.calibration import BINS, Calibration, calibrate

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
CHANCE = 0.5
_RESAMPLES = 2000


@dataclass(frozen=True)
class ResponseScore:
    """Summed log-probabilities of one response's `tokens` tokens (end token included), nats."""

    logp: float
    ref_logp: float
    tokens: int

    @property
    def log_ratio(self) -> float:
        """log pi(y|x) - log pi_ref(y|x): the implicit reward over beta, up to a term of x alone."""
        return self.logp - self.ref_logp


@dataclass(frozen=True)
class PairScore:
    """A scored pair; `row` is its number in the source."""

    row: int
    chosen: ResponseScore
    rejected: ResponseScore

    def margin(self, beta: float) -> float:
        """Difference of implicit rewards, chosen minus rejected: beta times nats."""
        return beta * (self.chosen.log_ratio - self.rejected.log_ratio)

    def record(self, beta: float) -> dict[str, Any]:
        """One line of JSON."""
        margin = self.margin(beta)
        return {
            "row": self.row,
            "margin": margin,
            "probability": float(1 / (1 + np.exp(-margin))),
            "chosen": asdict(self.chosen),
            "rejected": asdict(self.rejected),
        }


RULES: dict[str, Callable[[ResponseScore], float]] = {
    "implicit reward": lambda response: response.log_ratio,
    "policy log-prob": lambda response: response.logp,
    "policy log-prob per token": lambda response: response.logp / response.tokens,
    "reference log-prob": lambda response: response.ref_logp,
    "reference log-prob per token": lambda response: response.ref_logp / response.tokens,
    "longer in tokens": lambda response: float(response.tokens),
}
"""What may be said to make a response the better one: the higher value wins.

All but the first are controls. The reference is the model before preference training, so its
log-probabilities are what can be told without any.
"""


@dataclass(frozen=True)
class Margins:
    """Implicit-reward margins, beta times nats. `low`, `high`: 95 % interval of the mean, by
    bootstrap over pairs (None for a single pair). `sd`: over pairs, n - 1 in the denominator."""

    mean: float
    low: float | None
    high: float | None
    sd: float | None
    quantiles: dict[str, float]


@dataclass(frozen=True)
class PairReport:
    """What a set of scored pairs says: accuracy by rule (see :data:`RULES`), margins, calibration
    of the implicit reward's Bradley-Terry probability, and mean length of the two sides."""

    pairs: int
    beta: float
    accuracy: dict[str, Accuracy]
    margins: Margins
    calibration: Calibration
    chosen_tokens: float
    rejected_tokens: float

    def to_dict(self) -> dict[str, Any]:
        """JSON types; `rewards/*` are the names of the training metrics.

        `rewards/accuracies` counts a tie as wrong, as these metrics do everywhere; `accuracy`
        counts it half.
        """
        reward = self.accuracy["implicit reward"]
        plain = asdict(self)
        plain["rewards/accuracies"] = reward.value - 0.5 * reward.ties / reward.count
        plain["rewards/margins"] = self.margins.mean
        plain["chance"] = CHANCE
        return plain


def judge_pairs(
    scores: Sequence[PairScore], beta: float, *, bins: int = BINS, seed: int = 0
) -> PairReport:
    """Judge pairs by every rule.

    beta: the KL penalty that the policy was trained with; scales margins, and with them calibration
    bins: see :func:`calibrate`
    seed: of the bootstrap

    Raises ValueError for no pairs.
    """
    accuracy = {
        name: count_wins([rule(each.chosen) - rule(each.rejected) for each in scores])
        for name, rule in RULES.items()
    }
    margins = [each.margin(beta) for each in scores]
    return PairReport(
        pairs=len(scores),
        beta=beta,
        accuracy=accuracy,
        margins=_describe(margins, seed),
        calibration=calibrate(margins, bins),
        chosen_tokens=float(np.mean([each.chosen.tokens for each in scores])),
        rejected_tokens=float(np.mean([each.rejected.tokens for each in scores])),
    )


def _describe(margins: list[float], seed: int) -> Margins:
    quantiles = np.quantile(margins, QUANTILES)
    low, high, sd = None, None, None
    if len(margins) > 1:
        interval = stats.bootstrap(
            (margins,),
            np.mean,
            confidence_level=LEVEL,
            n_resamples=_RESAMPLES,
            batch=100,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
        low, high, sd = float(interval.low), float(interval.high), float(np.std(margins, ddof=1))
    return Margins(
        mean=float(np.mean(margins)),
        low=low,
        high=high,
        sd=sd,
        quantiles={f"{at:g}": float(q) for at, q in zip(QUANTILES, quantiles, strict=True)},
    )
