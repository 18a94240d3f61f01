"""Token rewards by a fixed oracle: the log-ratio of a trained pair that is not being trained."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tokenq.errors import UserError
from tokenq.models import load_pair
from tokenq.models.reference_cache import ReferenceCache
from tokenq.models.vocabulary import check_same_vocabulary
from tokenq.training.config import PreferenceConfig

Ids = list[int]


@dataclass(frozen=True)
class TokenRewards:
    """`beta * (log pi_oracle - log pi_oracle_ref)` of every token, from two caches on disk."""

    policy: ReferenceCache
    reference: ReferenceCache
    beta: float

    @classmethod
    def open(cls, args: PreferenceConfig, tokenizer: PreTrainedTokenizerBase) -> "TokenRewards":
        """Load the oracle that `args` names. Raises UserError if it cannot score these tokens."""
        if args.oracle is None:
            raise UserError(
                f"loss_type {', '.join(args.loss_type)}: needs a reward for every token; accepted: "
                "--oracle, a trained model (with --oracle_reference), or rows with *_rewards"
            )
        pair = load_pair(args.oracle, args.oracle_reference, device=args.device)
        if pair.reference is None:
            raise UserError(f"oracle: '{args.oracle}' has no reference; accepted: oracle_reference")
        check_same_vocabulary(tokenizer, pair.tokenizer, "policy", "oracle")
        root = Path(args.reference_cache_dir) if args.reference_cache_dir else None
        caches = [ReferenceCache.open(model, root) for model in (pair.policy, pair.reference)]
        return cls(caches[0], caches[1], args.oracle_beta)

    def fill(self, prompts: list[Ids], responses: list[Ids], args: PreferenceConfig) -> None:
        """Score the rows that are missing."""
        for cache in (self.policy, self.reference):
            cache.fill(
                prompts, responses, token_budget=args.token_budget, progress=not args.disable_tqdm
            )

    def release(self) -> None:
        """Let go of the oracle's models; all rows have been scored."""
        self.policy.reference = self.reference.reference = None

    def of(self, prompts: list[Ids], responses: list[Ids]) -> list[Tensor]:
        """Return [T_i] rewards a row, in nats times beta."""
        scored = zip(
            self.policy.lookup(prompts, responses),
            self.reference.lookup(prompts, responses),
            strict=True,
        )
        return [self.beta * (policy - reference) for policy, reference in scored]
