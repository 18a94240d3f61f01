"""One prompt with K answers and its exact label law: target distributions and population losses.

The four levels of reward access of "Reveal the Mystery of DPO" (arXiv 2502.03095) are here as exact
expectations. Its full text was not available: every loss below is reconstructed from its abstract
and summaries, re-derived, and tested. Closed-form minimisers are in `laws`, the table of all
objectives in `target_table`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

PopulationLoss = Callable[[Tensor, "PreferenceBandit"], Tensor]
"""Exact expected loss [...] from log pi [..., K] and the problem."""


@dataclass(frozen=True)
class PreferenceBandit:
    """One prompt with K answers of one step; leading dimensions `...` are independent problems.

    reference:   [..., K] pi_ref(y), > 0
    reward:      [..., K] r(y), what a Bradley-Terry judge reads
    tau:         [...] temperature of the target; `beta` of an objective, in units of the reward
    coverage:    [..., K] mu(y) >= 0: both answers of a pair are drawn from it, equal ones discarded
    preferences: [..., K, K] probability that the first answer is called better; 1/2 on the diagonal
    """

    reference: Tensor
    reward: Tensor
    tau: Tensor
    coverage: Tensor
    preferences: Tensor

    def __post_init__(self) -> None:
        if bool((self.tau <= 0).any()):
            raise ValueError(f"tau must be > 0, got {self.tau}")
        if bool((self.reference <= 0).any()):
            raise ValueError("reference must be > 0 for every answer")
        if bool((self.coverage < 0).any()):
            raise ValueError("coverage must be >= 0 for every answer")
        if not torch.allclose(
            self.preferences + self.preferences.mT, torch.ones_like(self.preferences)
        ):
            raise ValueError("preferences[i, j] + preferences[j, i] must be 1")

    @property
    def answers(self) -> int:
        """K."""
        return self.reference.shape[-1]

    @property
    def target(self) -> Tensor:
        """[..., K] pi^tau, the Boltzmann law of the reward around the reference."""
        return boltzmann(self.reference, self.reward, self.tau)

    @property
    def log_partition(self) -> Tensor:
        """[..., 1] log Z = log sum_y pi_ref(y) exp(r(y) / tau)."""
        return torch.logsumexp(
            self.reference.log() + self.reward / self.tau[..., None], -1, keepdim=True
        )

    @property
    def pairs(self) -> Tensor:
        """[..., K, K] probability that a row holds the ordered pair (i, j) before it is labelled.

        0 on the diagonal; sums to 1.
        """
        both = self.coverage[..., :, None] * self.coverage[..., None, :]
        both = both * (1 - torch.eye(self.answers, dtype=both.dtype))
        return both / both.sum((-2, -1), keepdim=True)

    @property
    def labelled_pairs(self) -> Tensor:
        """[..., K, K] probability that a row has answer i chosen and answer j rejected."""
        return 2 * self.pairs * self.preferences

    @property
    def chosen_law(self) -> Tensor:
        """[..., K] distribution of the chosen answers."""
        return self.labelled_pairs.sum(-1)

    @property
    def win_rates(self) -> Tensor:
        """[..., K] probability that answer i is preferred to one drawn from the coverage.

        The draw may be answer i itself, which counts one half.
        """
        mu = self.coverage / self.coverage.sum(-1, keepdim=True)
        return (self.preferences * mu[..., None, :]).sum(-1)

    def without_reference(self) -> "PreferenceBandit":
        """The same problem with the uniform distribution as its reference.

        This reads the plain forms BDA, RA, RDA, PRA (maximum entropy, pi proportional to
        exp(r / tau)); with pi_ref the same losses are the posterior forms "-P": the reference is
        the prior, exp(r / tau) the likelihood. That reading of "-P" is reconstructed.
        """
        return replace(self, reference=torch.full_like(self.reference, 1 / self.answers))

    def take(self, index: Tensor) -> "PreferenceBandit":
        """The problems `index` of the first dimension."""
        return PreferenceBandit(*(getattr(self, field.name)[index] for field in fields(self)))


def boltzmann(reference: Tensor, reward: Tensor, tau: Tensor | float) -> Tensor:
    """[..., K] probabilities `pi_ref(y) exp(r(y) / tau) / Z`.

    The minimiser of -E_pi[r] + tau KL(pi || pi_ref), which is tau KL(pi || boltzmann) plus a
    constant. tau to infinity gives the reference, tau to 0 the best answers of its support.

    reference, reward: [..., K]; tau: [...] or a number, > 0. Raises ValueError otherwise.
    """
    tau = torch.as_tensor(tau, dtype=reward.dtype)
    if bool((tau <= 0).any()):
        raise ValueError(f"tau must be > 0, got {tau}")
    return torch.softmax(reference.log() + reward / tau[..., None], -1)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """[...] KL(p || q) in nats of probabilities [..., K]; inf where q lacks mass that p has."""
    return (torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum(-1)


# Labels


def bradley_terry(reward: Tensor) -> Tensor:
    """[..., K, K] sigmoid(r_i - r_j): the probabilities of sampled labels."""
    return torch.sigmoid(reward[..., :, None] - reward[..., None, :])


def deterministic(reward: Tensor) -> Tensor:
    """[..., K, K] 1 where the first answer has the higher reward, 1/2 for equal ones."""
    return 0.5 + 0.5 * torch.sign(reward[..., :, None] - reward[..., None, :])


def flipped(preferences: Tensor, rate: float) -> Tensor:
    """[..., K, K] the probabilities after each label is turned round with probability `rate`."""
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must be in [0, 1], got {rate}")
    return (1 - 2 * rate) * preferences + rate


# The four levels of reward access; all reconstructed, see the head of this file


def bda(log_policy: Tensor, bandit: PreferenceBandit) -> Tensor:
    """Boltzmann distribution approximation, full reward: KL(pi || pi^tau).

    tau times it is -E_pi[r] + tau KL(pi || pi_ref) up to a constant: what PPO and SAC lower.
    """
    return (log_policy.exp() * (log_policy - bandit.target.log())).sum(-1)


def bda_forward(log_policy: Tensor, bandit: PreferenceBandit) -> Tensor:
    """The same in the other direction, KL(pi^tau || pi): likelihood of samples of the target."""
    target = bandit.target
    return (target * (target.log() - log_policy)).sum(-1)


def ra(log_policy: Tensor, bandit: PreferenceBandit) -> Tensor:
    """Reward approximation: E_mu[ (h + tau log Z - r)^2 ], h = tau log pi/pi_ref."""
    error = _implicit(log_policy, bandit) - bandit.reward
    error = error + bandit.tau[..., None] * bandit.log_partition
    mu = bandit.coverage / bandit.coverage.sum(-1, keepdim=True)
    return (mu * error**2).sum(-1)


def rda(log_policy: Tensor, bandit: PreferenceBandit) -> Tensor:
    """Reward-difference approximation: E[ ((h_i - h_j) - (r_i - r_j))^2 ] over pairs of mu.

    The partition function cancels. REBEL (arXiv 2404.16767) has this form around the last policy.
    """
    error = _implicit(log_policy, bandit) - bandit.reward
    difference = error[..., :, None] - error[..., None, :]
    return (bandit.pairs * difference**2).sum((-2, -1))


def pra(log_policy: Tensor, bandit: PreferenceBandit) -> Tensor:
    """Preference approximation: cross-entropy of sigmoid(h_i - h_j) to sigmoid(r_i - r_j)."""
    told = replace(bandit, preferences=bradley_terry(bandit.reward))
    return preference_loss(log_policy, told)


def preference_loss(log_policy: Tensor, bandit: PreferenceBandit) -> Tensor:
    """What DPO lowers in expectation: `pra` with the label law of the data in place of the truth.

    The difference to `pra` under another coverage is sum_ij (pairs - pairs') loss_ij, the
    distribution shift of offline data.
    """
    h = _implicit(log_policy, bandit)
    margins = h[..., :, None] - h[..., None, :]
    return -(bandit.labelled_pairs * logsigmoid(margins)).sum((-2, -1))


APPROXIMATIONS: dict[str, PopulationLoss] = {
    "BDA": bda,
    "BDA forward": bda_forward,
    "RA": ra,
    "RDA": rda,
    "PRA": pra,
}
"""The levels of reward access, most access first."""


def _implicit(log_policy: Tensor, bandit: PreferenceBandit) -> Tensor:
    """[..., K] h = tau log pi/pi_ref."""
    return bandit.tau[..., None] * (log_policy - bandit.reference.log())


# Minimisers and rates by computation


@dataclass(frozen=True)
class Minimum:
    """policy: [K]; gradient: largest entry of the gradient in the logits; finite: see `minimise`"""

    policy: Tensor
    gradient: float
    finite: bool


def minimise(
    loss: Callable[[Tensor], Tensor], answers: int, start: Tensor | None = None, steps: int = 200
) -> Minimum:
    """Lower a 0-dim loss of log pi [K] by damped Newton steps on the logits.

    Not finite: the logits ran further than 40 nats apart, or the gradient did not vanish (below
    1e-8) in `steps` steps; both happen where the infimum lies at infinity.
    """

    def of_logits(logits: Tensor) -> Tensor:
        return loss(torch.log_softmax(logits, -1))

    logits = torch.zeros(answers, dtype=torch.float64) if start is None else start.double()
    gradient = torch.func.grad(of_logits)(logits)
    for _ in range(steps):
        if float(gradient.abs().max()) < 1e-12 or float(logits.max() - logits.min()) > 40:
            break
        curvature, directions = torch.linalg.eigh(torch.func.hessian(of_logits)(logits))
        # The constant vector is no direction of the policy; its eigenvalue 0 must not be divided by
        moves = curvature.abs() > 1e-14 * curvature.abs().max().clamp_min(1e-30)
        inverse = torch.where(moves, 1 / curvature.abs().clamp_min(1e-30), 0.0)
        step = -directions @ (inverse * (directions.T @ gradient))
        step = step - step.mean()
        step = step * min(1.0, 2.0 / max(1e-30, float(step.abs().max())))
        logits = _search(of_logits, logits, step, float(gradient @ step))
        gradient = torch.func.grad(of_logits)(logits)
    size = float(gradient.abs().max())
    near = float(logits.max() - logits.min()) <= 40
    return Minimum(torch.softmax(logits, -1), size, near and size < 1e-8)


def _search(loss: Callable[[Tensor], Tensor], logits: Tensor, step: Tensor, slope: float) -> Tensor:
    """Halve the step until the loss falls; the last try is taken, where rounding hides the fall."""
    before = float(loss(logits))
    for _ in range(30):
        if float(loss(logits + step)) <= before + 1e-4 * slope + 1e-15 * abs(before):
            break
        step, slope = step / 2, slope / 2
    return logits + step


@dataclass(frozen=True)
class Rate:
    """Curvature of a loss in the logits at a policy, and what it allows gradient descent to do.

    smallest, largest: [...] eigenvalues of the Hessian across directions that change the policy
    """

    smallest: Tensor
    largest: Tensor

    @property
    def step(self) -> Tensor:
        """[...] the constant step of the fastest guaranteed local descent, 2 / (l + L)."""
        return 2 / (self.smallest + self.largest)

    def contraction(self, step: Tensor) -> Tensor:
        """[...] factor by which one step shrinks the distance; >= 1 where it does not converge."""
        return torch.maximum((1 - step * self.smallest).abs(), (1 - step * self.largest).abs())


def rate(loss: PopulationLoss, log_policy: Tensor, bandit: PreferenceBandit) -> Rate:
    """Eigenvalues of the Hessian of `loss` in the logits at log pi [..., K]."""
    logits = log_policy.detach().clone().requires_grad_(True)
    total = loss(torch.log_softmax(logits, -1), bandit).sum()
    (gradient,) = torch.autograd.grad(total, logits, create_graph=True)
    rows = [
        torch.autograd.grad(gradient[..., k].sum(), logits, retain_graph=True)[0]
        for k in range(bandit.answers)
    ]
    hessian = torch.stack(rows, -2).detach()
    basis = _gauge_free(bandit.answers).to(hessian)
    eigenvalues = torch.linalg.eigvalsh(basis.T @ hessian @ basis)
    return Rate(eigenvalues[..., 0], eigenvalues[..., -1])


def _gauge_free(size: int) -> Tensor:
    """[K, K - 1] orthonormal basis of the logits that sum to 0."""
    basis = torch.zeros(size, size - 1, dtype=torch.float64)
    for k in range(1, size):
        basis[:k, k - 1] = 1 / math.sqrt(k * (k + 1))
        basis[k, k - 1] = -k / math.sqrt(k * (k + 1))
    return basis
