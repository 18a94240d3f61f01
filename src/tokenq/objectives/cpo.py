"""CPO: a preference loss on the policy's own log-probabilities, and the likelihood of chosen."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from torch import Tensor

from tokenq.objectives.base import (
    NOTHING,
    Metrics,
    Need,
    batch_mean,
    require_not_negative,
    require_positive,
    reward_metrics,
)
from tokenq.objectives.batch import PairLogps
from tokenq.objectives.reference_free import (
    Form,
    margin_losses,
    mean_log_prob,
    require_form,
    score,
)


@dataclass(frozen=True)
class CPO:
    """Preference loss without a reference, plus the negative log-likelihood of the chosen response.

    With `log pi(y) = sum_t log pi(a_t|s_t)`, the loss of a pair with cpo_form "sigmoid" is

        -log sigmoid(beta * (log pi(chosen) - log pi(rejected)))
        - cpo_alpha * log pi(chosen) / |chosen|

    "Contrastive Preference Optimization" (arXiv 2401.08417, eq. 3 by TRL's count): DPO whose
    reference is uniform, held near the data by the second term. The forms "hinge" and "ipo" are
    TRL's: max(0, 1 - beta * m), and (m - 1 / (2 beta))^2 with mean log-probabilities in place of
    sums.

    The likelihood term is a mean over the tokens of each response, then over pairs, so that the
    loss is one mean over pairs whatever the micro-batches. TRL takes the mean over all chosen
    tokens of a micro-batch: the same where chosen responses are equally long. For exactly that,
    use cpo_alpha 0 and a mixture with `sft`.

    beta:            scale of the log-probabilities, > 0; under "ipo" the regularisation tau
    cpo_alpha:       weight of the likelihood of the chosen response, >= 0
    cpo_form:        loss of the margin m: sigmoid, hinge or ipo
    label_smoothing: in [0, 0.5); 0 with the forms hinge and ipo
    """

    kind: ClassVar[Literal["preference"]] = "preference"
    couples_rows: ClassVar[bool] = False
    needs: ClassVar[frozenset[Need]] = NOTHING

    beta: float = 0.1
    cpo_alpha: float = 1.0
    cpo_form: Form = "sigmoid"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        require_positive(beta=self.beta)
        require_form(get_args(Form), self.label_smoothing, cpo_form=self.cpo_form)
        require_not_negative(cpo_alpha=self.cpo_alpha)

    def __call__(self, batch: PairLogps) -> tuple[Tensor, Metrics]:
        chosen = score(batch.chosen_side, self.cpo_form)
        rejected = score(batch.rejected_side, self.cpo_form)
        margins = margin_losses(chosen - rejected, self.cpo_form, self.beta, self.label_smoothing)
        nll = batch_mean(-mean_log_prob(batch.chosen_side))
        loss = batch_mean(margins) + self.cpo_alpha * nll
        metrics = reward_metrics(self.beta * chosen, self.beta * rejected)
        return loss, metrics | {"nll_loss": nll.detach()}

    def weight(self, batch: PairLogps) -> Tensor:
        """Number of pairs."""
        return batch.chosen.new_tensor(len(batch))
