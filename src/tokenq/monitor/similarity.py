"""How alike the two answers of a pair are to the model: what makes training lose the chosen one.

Both measures need one forward of the model that training starts from, and no reference.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokenq.models.forward import causal_lm, response_hidden
from tokenq.models.head import Head
from tokenq.models.logps import TOKEN_BUDGET
from tokenq.models.packing import Ids
from tokenq.models.reference import scoring


@dataclass(frozen=True)
class HeadGradients:
    """Products of the gradients of log pi(y|x) with respect to the head's weight matrix.

    chosen, rejected: squared lengths of the two gradients g+ and g-
    product:          <g+, g->

    A step of DPO, or of any objective that raises log pi(y+) - log pi(y-), moves the weights along
    g+ - g-. To first order, with only the head moving, log pi(y+) changes by
    `chosen - product` and log pi(y-) by `product - rejected`, per unit of step.
    """

    chosen: float
    rejected: float
    product: float

    @property
    def chosen_change(self) -> float:
        """Change of log pi(y+) in a unit step along the margin's gradient, nats; below 0: the
        chosen answer becomes less likely although the margin grows."""
        return self.chosen - self.product

    @property
    def cosine(self) -> float:
        """Of the angle between the two gradients; 0 where one of them is 0."""
        size = (self.chosen * self.rejected) ** 0.5
        return self.product / size if size else 0.0


@dataclass(frozen=True)
class PairSimilarity:
    """One pair, T+ and T- tokens long.

    ches:            <sum h+, sum h-> - |sum h+|^2, over the hidden states h that the tokens are
                     predicted from ("centered hidden embedding similarity", 2410.08847)
    ches_normalised: the same of means: <mean h+, mean h-> - |mean h+|^2; to compare pairs of
                     different lengths
    gradients:       see :class:`HeadGradients`; None where not asked for

    The higher, the more of the chosen answer's probability training is expected to move away.
    """

    chosen_tokens: int
    rejected_tokens: int
    ches: float
    ches_normalised: float
    gradients: HeadGradients | None = None


def pair_similarities(
    model: nn.Module,
    prompts: Sequence[Ids],
    chosen: Sequence[Ids],
    rejected: Sequence[Ids],
    *,
    gradients: bool = False,
    token_budget: int = TOKEN_BUDGET,
) -> Iterator[PairSimilarity]:
    """Yield the similarity of each pair, in order.

    model:     the policy before preference training
    chosen, rejected: token ids with their end tokens
    gradients: whether to compute products of gradients, which takes the head's probabilities

    Raises ValueError for an empty prompt or answer.
    """
    sides = [side for pair in zip(chosen, rejected, strict=True) for side in pair]
    doubled = [prompt for prompt in prompts for _ in range(2)]
    with scoring(model) as active:
        hidden = response_hidden(active, doubled, sides, token_budget)
        head = Head.of(causal_lm(active)) if gradients else None
        for number in range(len(prompts)):
            ours, theirs = hidden[2 * number], hidden[2 * number + 1]
            found = None
            if head is not None:
                found = head_gradients(head, (ours, chosen[number]), (theirs, rejected[number]))
            yield state_similarity(ours, theirs, found)


def head_gradients(
    head: Head, chosen: tuple[Tensor, Ids], rejected: tuple[Tensor, Ids]
) -> HeadGradients:
    """Products of the head's gradients; each answer as hidden states [T, H] and token ids [T].

    With residuals r_t = onehot(y_t) - pi_t, the gradient of log pi(y|x) is sum_t r_t h_t^T, so a
    product of two is the sum over all pairs of positions of <r_t, r_s> <h_t, h_s>: no matrix of the
    head's size is made. The head must be linear: softcapped logits are taken as they come out of
    the cap, which is exact for the direction of the logits and not for the weights.
    """
    states = torch.cat([chosen[0], rejected[0]]).double()
    residuals = _residuals(head, torch.cat([chosen[0], rejected[0]]), [*chosen[1], *rejected[1]])
    products = (states @ states.T) * (residuals @ residuals.T).double() * head.scale**2
    length = len(chosen[0])
    return HeadGradients(
        float(products[:length, :length].sum()),
        float(products[length:, length:].sum()),
        float(products[:length, length:].sum()),
    )


def state_similarity(
    chosen: Tensor, rejected: Tensor, gradients: HeadGradients | None = None
) -> PairSimilarity:
    """Similarity of two answers from the hidden states [T, H] that their tokens come from."""
    ours, theirs = chosen.double().sum(0), rejected.double().sum(0)
    mean, other = ours / len(chosen), theirs / len(rejected)
    return PairSimilarity(
        len(chosen),
        len(rejected),
        float(ours @ theirs - ours @ ours),
        float(mean @ other - mean @ mean),
        gradients,
    )


def _residuals(head: Head, hidden: Tensor, tokens: Ids) -> Tensor:
    """onehot(token) - pi of each position, [T, V]."""
    residuals = torch.log_softmax(head.logits(hidden), dim=-1).exp_().neg_()
    at = torch.arange(len(hidden), device=hidden.device)
    residuals[at, torch.tensor(list(tokens), device=hidden.device)] += 1
    return residuals
