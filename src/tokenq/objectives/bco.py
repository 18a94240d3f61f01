"""BCO: a binary classifier whose logit is the implicit reward, less a shift shared by all."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tokenq.objectives.base import REFERENCE, Metrics, Need, batch_mean, require_positive
from tokenq.objectives.batch import LabelledLogps
from tokenq.objectives.unpaired import (
    label_probabilities,
    labelled_reward_metrics,
    mean_of,
    summed_log_ratio,
)


@dataclass(frozen=True)
class BCO:
    """Logistic loss of the label on the implicit reward.

    With `r = beta * sum_t (log pi(a_t|s_t) - log pi_ref(a_t|s_t))`, the loss of a response is

        good: -log sigmoid(r - delta)
        bad:  -log sigmoid(delta - r)

        delta = (mean of r over good + mean of r over bad) / 2

    "Binary Classifier Optimization for Large Language Model Alignment" (arXiv 2404.04656). Since
    `sigmoid(a) sigmoid(b) < sigmoid(a + b)`, the loss of one good and one bad response bounds that
    of DPO on the pair from above, for any delta. A label between 0 and 1 is the probability of
    good: the loss is the mean over both labels.

    delta takes no gradient. In the paper it is a moving average over training; TRL kept a running
    mean of all rewards, whichever their label. An objective holds no state, so delta here is that
    of the rows that are scored together: use batches that hold both labels. Where one label is
    missing, delta is the mean of the other. The paper's weights for good and bad responses to
    different prompts (its density ratio) need a prompt classifier and are left out.

    beta: strength of the KL constraint, > 0; rewards are in nats times beta
    """

    kind: ClassVar[Literal["unpaired"]] = "unpaired"
    couples_rows: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = REFERENCE

    beta: float = 0.1

    def __post_init__(self) -> None:
        require_positive(beta=self.beta)

    def __call__(self, batch: LabelledLogps) -> tuple[Tensor, Metrics]:
        rewards = self.beta * summed_log_ratio(batch.responses)
        good = label_probabilities(batch, rewards)
        delta = reward_shift(rewards.detach(), good)
        logits = rewards - delta
        loss = -batch_mean(good * logsigmoid(logits) + (1 - good) * logsigmoid(-logits))
        return loss, labelled_reward_metrics(rewards, good) | {"delta": delta}

    def weight(self, batch: LabelledLogps) -> Tensor:
        """Number of responses."""
        return batch.responses.logps.new_tensor(len(batch))


def reward_shift(rewards: Tensor, good: Tensor) -> Tensor:
    """Half-way between the mean rewards [B] of good and of bad responses; 0-dim.

    The mean of one label where the other is missing, 0 where there are no rows.
    """
    bad = 1 - good
    sides = torch.stack([mean_of(rewards, good), mean_of(rewards, bad)])
    return mean_of(sides, (torch.stack([good.sum(), bad.sum()]) > 0).to(sides))
