"""Q-RM: token rewards that are logits of a discriminative policy."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from tokenq.credit.sources.language_model import LanguageModel, token_scores
from tokenq.credit.sources.scores import TokenScores
from tokenq.data.formats import Messages
from tokenq.errors import UserError
from tokenq.models.head import TokenLogps

Gauge = Literal["logit", "mean", "policy"]
_GAUGES: tuple[Gauge, ...] = ("logit", "mean", "policy")


class DiscriminativePolicy:
    """beta * Z(s_t, y_t), the logit of the token that was taken, of a model trained by `q_rm`.

    "Discriminative Policy Optimization for Token-Level Reward Models" (arXiv 2505.23363). What the
    training determines is the *mean* of Z over a response, up to one number per prompt. Adding c(s)
    to all logits of a state leaves the model's own distribution as it is but moves every token's
    reward there, so only two things can be trusted: sums over whole responses, and differences
    between tokens at the same state. The gauge says what is subtracted:

    logit:  nothing: the raw reward of the paper, in the gauge that training happened to end in
    mean:   the mean logit over the vocabulary there: how much better than an average token
    policy: the log-sum-exp of the logits: log-probability under the discriminative policy, which no
            shift of a state's logits can move

    A logit has no KL against a reference, and a response's score is the mean, not the sum, of its
    tokens' logits.
    """

    def __init__(
        self,
        model: LanguageModel,
        beta: float = 0.2,
        gauge: Gauge = "logit",
        name: str | None = None,
    ) -> None:
        if gauge not in _GAUGES:
            raise UserError(f"gauge is '{gauge}'; accepted: {', '.join(_GAUGES)}")
        self.name = name or f"Q-RM ({gauge})"
        self._model = model
        self._beta = beta
        self._gauge = gauge

    def score(
        self, prompts: Sequence[str | Messages], responses: Sequence[str | Messages]
    ) -> list[TokenScores]:
        """Score responses (see :class:`TokenSource`). Unit: beta times logits."""
        rows = self._model.encode(prompts, responses)
        scores = [self._beta * self._read(row) for row in self._model.predict(rows)]
        return token_scores(rows, responses, scores, self.name, "beta x logit")

    def _read(self, row: TokenLogps) -> Tensor:
        if self._gauge == "policy":
            return row.logps
        return row.taken if self._gauge == "logit" else row.taken - row.logits
