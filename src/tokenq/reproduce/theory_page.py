"""The page of `tokenq reproduce theory`: its tables, the counter-example, and what they mean."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from tokenq.reproduce.experiment import Results
from tokenq.reproduce.statistics import estimate, paired_difference, shown

REACHED = 1e-8
"""KL(pi* || pi) below which training counts as having reached pi*, nats."""


def page(results: Results) -> str:
    """The whole page, without title and command line."""
    return "\n\n".join(
        (_identities(results), _two_searches(results), _training(results), _labels(results))
    )


def _identities(results: Results) -> str:
    checks, controls = results["checks"], results["controls"]
    failed = [check["identity"] for check in checks if not check["holds"]]
    verdict = f"Not so: {', '.join(failed)}." if failed else "All hold within 1e-10."
    identities = [(c["identity"], c["equation"], f"{c['error']:.1e}") for c in checks]
    header = ("false statement", "equation", "refuted on", "deviation there")
    return f"""## Identities

Largest error over {checks[0]["trees"]:,} random trees, all their states and responses, in units of
the reward (of probability where the statement is about preferences). Trees have 2 to 6 tokens, 1 to
5 steps, an EOS or none, 1 to 3 prompts; beta is between 0.05 and 5. Equation numbers are those of
arXiv 2404.12358. One side is computed by recursion over states, the other by enumeration of whole
responses, wherever that is possible. {verdict}

<!-- --8<-- [start:identities] -->
{_table(("identity", "equation", "largest error"), identities)}
<!-- --8<-- [end:identities] -->

Statements that must fail, so that the measures are known to tell right from wrong:

{_table(header, map(_control, controls))}"""


def _control(control: Results) -> tuple[str, ...]:
    return (
        control["statement"],
        control["equation"],
        f"{control['refuted']:,} of {control['trees']:,} trees",
        f"{control['smallest']:.1e} to {control['largest']:.1e}",
    )


def _two_searches(results: Results) -> str:
    example, differ = results["counter_example"], results["controls"][-1]
    responses, beta = example["responses"], example["beta"]
    likeliest, best = responses[example["likeliest"]], responses[example["best"]]
    names = ("return", "log_ref", "log_policy", "log_ratio")
    rows = [
        (
            _text(response),
            *(f"{response[name]:.4f}" for name in names),
            f"{response['return'] + beta * response['log_ref']:.4f}",
        )
        for response in responses
    ]
    header = ("response", "return", "log pi_ref", "log pi*", "log pi*/pi_ref", "eq. 12")
    steps = "1 step" if example["horizon"] == 1 else f"{example['horizon']} steps"
    return f"""## Two searches

The likeliest response under `pi*` has the highest return plus `beta log pi_ref` (eqs. 12, 13). The
response of highest log-ratio has the highest return. On {differ["refuted"]:,} of
{differ["trees"]:,} random trees these are two responses, and the likeliest one is up to
{differ["largest"]:.2f} short of the best return. The smallest tree found on which it happens has
{example["vocabulary"]} tokens and {steps} (beta = {beta:g}, `V*(s0)` =
{example["start_value"]:.4f}):

{_table(header, rows)}

Likelihood search answers `{_text(likeliest)}`, the highest in the columns `log pi*` and eq. 12.
Log-ratio search answers `{_text(best)}`, the highest in the columns `log pi*/pi_ref` and return;
its return is higher by {best["return"] - likeliest["return"]:.4f}, but the reference gives it
little probability. In every row eq. 12 is `+V*(s0) + beta log pi*`, and the return is
`V*(s0) + beta log pi*/pi_ref`."""


def _text(response: Results) -> str:
    return " ".join(map(str, response["tokens"]))


def _training(results: Results) -> str:
    trained = results["trained"]
    labelled, certain, partial = (
        [one[part] for one in trained] for part in ("bradley_terry", "deterministic", "uncovered")
    )
    reached = sum(part["kl"] <= REACHED for part in labelled)
    turned = sum(part["kl"] > 10 * part["lowest_kl"] for part in certain)
    learned, exact, before = (
        [part[name] for part in partial]
        for name in ("learned_mass", "exact_mass", "reference_mass")
    )
    moved = shown(paired_difference(learned, before))
    bias = shown(paired_difference(learned, exact))
    off = shown(estimate([abs(one - other) for one, other in zip(learned, exact, strict=True)]))
    rows = [
        ("all pairs, Bradley-Terry labels", "KL(pi* to pi)", _largest(labelled, "kl")),
        ("", "learned from true reward: error as a shaping", _largest(labelled, "shaping_error")),
        ("", "correlation with exact advantage", _mean(labelled, "correlation_advantage", 6)),
        ("", "correlation with raw reward", _mean(labelled, "correlation_reward", 3)),
        ("all pairs, labels without noise", "KL(pi* to pi)", _mean(certain, "kl", 1)),
        ("", "lowest KL on the way", _mean(certain, "lowest_kl", 3)),
        ("", "loss at the end", _largest(certain, "loss")),
        ("", "probability of the best response", _mean(certain, "on_best", 6)),
        ("", "highest probability of a response under pi*", _mean(certain, "best_under_target", 3)),
        ("", "learned from true reward: error as a shaping", _mean(certain, "shaping_error", 1)),
        ("a third of the responses in no pair", "KL(pi* to pi)", _mean(partial, "kl", 3)),
        ("", "KL given a response that is in pairs", _largest(partial, "kl_within_covered")),
        ("", "mass on the others: pi*", _mean(partial, "exact_mass", 3)),
        ("", "mass on the others: reference", _mean(partial, "reference_mass", 3)),
        ("", "mass on the others: learned", _mean(partial, "learned_mass", 3)),
        ("", "mass on the others: learned less reference", moved),
        ("", "mass on the others: learned less pi*", bias),
        ("", "mass on the others: learned less pi*, absolute", off),
        ("", "mass on the others: range over five starts", _mean(partial, "mass_range", 3)),
        ("", "loss: range over five starts", _largest(partial, "loss_range")),
    ]
    return f"""## Tabular training

DPO (beta = {results["beta"]:g}) on the exact expected loss over all pairs, one logit per state and
token, quasi-Newton steps in float64 from the reference. {len(trained)} random MDPs with 3 tokens,
3 steps, EOS, 2 prompts and 15 responses to each. Means over MDPs with 95 % Student-t intervals, or
the largest value where `<=` is written.

{_table(("setting", "measure", "value"), rows)}

- **Bradley-Terry labels.** `KL(pi* to pi)` is below {REACHED:g} on {reached} of {len(trained)}
  MDPs. By the test of Definition 1 the learned token reward is the true one up to shaping, and it
  equals the exact advantage. It is not the raw reward: preferences over whole responses do not tell
  how a return is spread over its tokens.
- **Labels without noise.** No finite policy minimises the loss. The KL falls, then grows: on
  {turned} of {len(trained)} MDPs it ends more than ten times above its lowest value. All mass goes
  to the response of highest return, where `pi*` spreads it.
- **Responses in no pair.** Among the responses that are in pairs, the law is that of `pi*`. The
  mass of the others is not in the loss: every start ends at the same loss with another mass.
  From the reference, these steps moved it by {moved}, and left it {off} away from that of `pi*`."""


def _labels(results: Results) -> str:
    sampled = [one["sampled"] for one in results["trained"]]
    by_count = [[part["kl"] for part in parts] for parts in zip(*sampled, strict=True)]
    rows = [
        (f"{part['labels']:,}", shown(estimate(kls), 5))
        for part, kls in zip(sampled[0], by_count, strict=True)
    ]
    falls = ", ".join(f"{np.mean(a) / np.mean(b):.1f}" for a, b in pairwise(by_count))
    return f"""## Finitely many labels

Bradley-Terry labels on uniformly drawn pairs, fitted to the end. Ten times the labels divide the
mean of `KL(pi* to pi)` by {falls}.

{_table(("labels", "KL(pi* to pi)"), rows)}"""


def _mean(parts: Sequence[Results], name: str, digits: int) -> str:
    return shown(estimate([part[name] for part in parts]), digits)


def _largest(parts: Sequence[Results], name: str) -> str:
    return f"<= {max(part[name] for part in parts):.1e}"


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace("*", r"\*")
