"""The scoring judge that is a preference-trained pair: its own implicit reward."""

from collections.abc import Sequence

from tokenq.errors import UserError
from tokenq.judges.comparisons import Prompt
from tokenq.judges.encoding import encode_responses
from tokenq.models.logps import TOKEN_BUDGET, token_logps
from tokenq.models.pair import Pair, context_length, reference_of
from tokenq.models.reference import scoring


class ImplicitReward:
    """beta * (log pi(y|x) - log pi_ref(y|x)) of a pair (2305.18290, eq. 5, up to a term of x).

    A judge of what another policy wrote. Of its own policy's responses it says what that policy was
    trained to believe, which is no evidence.

    beta:         the KL penalty that the pair was trained with; only scales the scores
    name:         in messages
    token_budget: input tokens of one forward; bounds memory

    Raises UserError for a pair without a reference.
    """

    def __init__(
        self,
        pair: Pair,
        *,
        beta: float = 0.1,
        name: str = "implicit reward",
        token_budget: int = TOKEN_BUDGET,
    ) -> None:
        if not beta > 0:
            raise UserError(f"beta is {beta}; accepted: a number above 0")
        self.pair = pair
        self.beta = beta
        self.name = name
        self._reference = reference_of(pair)
        self._token_budget = token_budget

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """Score responses, beta times nats. Raises UserError for a row that is too long."""
        longest = context_length(self.pair)
        ids = encode_responses(self.pair.tokenizer, prompts, responses, longest, self.name)
        sums = []
        for side in (self.pair.policy, self._reference):
            with scoring(side) as model:
                logps = token_logps(model, *ids, token_budget=self._token_budget)
            sums.append([float(each.double().sum()) for each in logps])
        return [self.beta * (ours - theirs) for ours, theirs in zip(*sums, strict=True)]
