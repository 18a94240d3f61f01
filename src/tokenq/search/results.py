"""What a search gives back: ranked responses, each with what the models said of its tokens."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

from torch import Tensor

from tokenq.errors import UserError
from tokenq.models.branching.branches import POLICY, REFERENCE
from tokenq.models.pair import Pair
from tokenq.search.decoding import Finish
from tokenq.search.trace import Trace

if TYPE_CHECKING:
    from tokenq.credit.result import Credit


@dataclass(frozen=True, eq=False)
class SearchResult:
    """One response that was found. T tokens; log-probabilities are float32, natural.

    prompt_ids:  the prompt's tokens
    token_ids:   the response's, with the end token if it has one
    text:        the response's text without end token and stop string; None for bare models
    score:       what the search maximised, see its page; the higher the better
    logps:       [T] log-probabilities under the distribution that was searched: the policy's,
                 unless the search was guided
    model_logps: model -> [T] what each model that was read says: "policy", "reference", ...
    kl:          [T] KL(policy || reference) in the states where the tokens were chosen, over the
                 vocabulary; None where the reference was not read in step
    finish:      "eos", "stop" (a stop string) or "length"
    details:     what the method adds, such as a judge's score or the visits of a tree search
    pair:        the pair that was searched, if it was one
    """

    prompt_ids: list[int]
    token_ids: list[int]
    text: str | None
    score: float
    logps: Tensor
    model_logps: Mapping[str, Tensor]
    kl: Tensor | None
    finish: Finish
    details: Mapping[str, float] = field(default_factory=dict)
    pair: Pair | None = None

    @property
    def ref_logps(self) -> Tensor | None:
        """[T] log-probabilities under the reference, or None where it was not asked."""
        return self.model_logps.get(REFERENCE)

    @property
    def log_ratio(self) -> float | None:
        """log pi(y|x) - log pi_ref(y|x), nats: the implicit reward over beta, and what this one
        response says of KL(pi || pi_ref). None without a reference."""
        if REFERENCE not in self.model_logps or POLICY not in self.model_logps:
            return None
        ours, theirs = self.model_logps[POLICY].double(), self.model_logps[REFERENCE].double()
        return float((ours - theirs).sum())

    def rewards(self, beta: float = 0.1) -> Tensor:
        """[T] implicit reward of each token, `beta` times nats. UserError without a reference."""
        if self.log_ratio is None:
            raise UserError(
                "the response has no implicit reward: no reference was given; accepted: a pair "
                "with a reference"
            )
        return beta * (self.model_logps[POLICY] - self.model_logps[REFERENCE])

    def credit(self, beta: float = 0.1, pair: Pair | None = None) -> "Credit":
        """Read the response token by token with the pair that found it, or with another one.

        Raises UserError where there is neither, or the pair has no reference or no tokenizer.
        """
        from tokenq.credit.found import credit_of_tokens

        reader = pair or self.pair
        if reader is None:
            raise UserError("the search had no pair; accepted: pair=, a policy and its reference")
        return credit_of_tokens(reader, self.prompt_ids, self.token_ids, beta)

    def to_dict(self, beta: float = 0.1) -> dict[str, Any]:
        """JSON types. With a reference: `rewards`, and `log_ratio`, their sum over `beta`."""
        plain: dict[str, Any] = {
            "text": self.text,
            "token_ids": self.token_ids,
            "score": self.score,
            "finish": self.finish,
            "logps": self.logps.tolist(),
        }
        if self.log_ratio is not None:
            plain["log_ratio"] = self.log_ratio
            plain["rewards"] = self.rewards(beta).tolist()
        if self.kl is not None:
            plain["kl"] = float(self.kl.sum())
        if self.details:
            plain["details"] = dict(self.details)
        return plain


class SearchResults(Sequence[list[SearchResult]]):
    """The responses to each prompt, best first: `results[i][j]` is the j-th of prompt i.

    traces:     the tree that was searched for each prompt, where `trace=True` was given
    statistics: what all of it took: "expansions" (prompts and tokens that the models read, however
                many models), "model_seconds", "seconds" (all), and what the method counts
    """

    def __init__(
        self,
        rows: Sequence[list[SearchResult]],
        traces: Sequence[Trace | None] | None = None,
        statistics: Mapping[str, float] | None = None,
    ) -> None:
        self._rows = list(rows)
        self.statistics = dict(statistics or {})
        self.traces = list(traces) if traces is not None else [None] * len(self._rows)

    @overload
    def __getitem__(self, index: int) -> list[SearchResult]: ...

    @overload
    def __getitem__(self, index: slice) -> list[list[SearchResult]]: ...

    def __getitem__(self, index: int | slice) -> list[SearchResult] | list[list[SearchResult]]:
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[list[SearchResult]]:
        return iter(self._rows)

    @property
    def best(self) -> list[SearchResult]:
        """The best response to each prompt. Raises UserError where a prompt has none, because
        its options or processors forbade every token."""
        empty = next((number for number, row in enumerate(self._rows) if not row), None)
        if empty is not None:
            raise UserError(
                f"prompt {empty} has no response: every token was forbidden; accepted: weaker "
                "options"
            )
        return [row[0] for row in self._rows]

    def mean_log_ratio(self) -> float | None:
        """Mean log pi/pi_ref of the best responses, nats: how far the search went from the
        reference. None without one."""
        ratios = [one.log_ratio for one in self.best]
        known = [ratio for ratio in ratios if ratio is not None and math.isfinite(ratio)]
        return sum(known) / len(known) if known else None
