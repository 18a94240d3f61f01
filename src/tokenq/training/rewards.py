"""Token rewards by a fixed oracle: the log-ratio of a trained pair that is not being trained."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import has_length

from tokenq.errors import UserError
from tokenq.models import load_pair
from tokenq.models.checkpoint import inspect
from tokenq.models.reference_cache import ReferenceCache
from tokenq.storage import write_text
from tokenq.training.config import PreferenceConfig
from tokenq.training.dataset import Split
from tokenq.training.reference_names import check_vocabulary_of, trusts_remote_code

Ids = list[int]


def check_oracle(
    splits: Iterable[Split],
    tokenizer: PreTrainedTokenizerBase,
    policy: str,
    args: PreferenceConfig,
) -> None:
    """Raise UserError unless the oracle of `args` can score these rows; reads no weights.

    policy: name of the model that is trained, for messages
    """
    if args.oracle is None:
        raise UserError(
            f"loss_type {', '.join(args.loss_type)}: needs a reward for every token; accepted: "
            "--oracle, a trained model (with --oracle_reference), or rows with *_rewards"
        )
    for split in splits:
        if not has_length(split.dataset):
            raise UserError(
                f"{split.source}: a streamed set cannot be scored by the oracle before training; "
                "accepted: dataset_streaming false"
            )
    trust = trusts_remote_code(args)
    if args.oracle_reference is not None:
        check_vocabulary_of(args.oracle_reference, tokenizer, policy, trust)
    elif inspect(args.oracle, trust_remote_code=trust).base is None:
        raise UserError(f"oracle: '{args.oracle}' has no reference; accepted: oracle_reference")
    check_vocabulary_of(args.oracle, tokenizer, policy, trust)


@dataclass(frozen=True)
class TokenRewards:
    """`beta * (log pi_oracle - log pi_oracle_ref)` of every token, from two caches on disk."""

    policy: ReferenceCache
    reference: ReferenceCache
    beta: float

    @classmethod
    def open(cls, args: PreferenceConfig) -> "TokenRewards":
        """Load the oracle that `args` names, once :func:`check_oracle` has found no fault."""
        assert args.oracle is not None
        pair = load_pair(
            args.oracle,
            args.oracle_reference,
            device=args.device,
            trust_remote_code=trusts_remote_code(args),
        )
        assert pair.reference is not None
        root = Path(args.reference_cache_dir) if args.reference_cache_dir else None
        caches = [ReferenceCache.open(model, root) for model in (pair.policy, pair.reference)]
        return cls(caches[0], caches[1], args.oracle_beta)

    def fill(self, prompts: list[Ids], responses: list[Ids], args: PreferenceConfig) -> None:
        """Score the rows that are missing. Raises UserError once the models were let go."""
        if self.policy.reference is None:
            raise UserError(
                "evaluate: the oracle's models are gone; give this set as eval_dataset from the "
                "start"
            )
        for cache in (self.policy, self.reference):
            cache.fill(
                prompts, responses, token_budget=args.token_budget, progress=not args.disable_tqdm
            )

    def release(self) -> None:
        """Let go of the oracle's models; all rows have been scored."""
        self.policy.reference = self.reference.reference = None

    def save(self, path: Path) -> None:
        """Write down which weights the rewards come from."""
        write_text(path, json.dumps(self._identity(), indent=2) + "\n")

    def verify(self, path: Path) -> None:
        """Raise UserError unless :meth:`save` of the same rewards wrote `path`."""
        if json.loads(path.read_text(encoding="utf-8")) != self._identity():
            raise UserError(
                f"oracle: its weights are not those that {path.parent} was trained with; give the "
                "original oracle, or start a new run"
            )

    def _identity(self) -> dict[str, str | float]:
        weights = {"oracle": self.policy.weights, "oracle_reference": self.reference.weights}
        return {**weights, "oracle_beta": self.beta}

    def of(self, prompts: list[Ids], responses: list[Ids]) -> list[Tensor]:
        """Return [T_i] rewards a row, in nats times beta."""
        scored = zip(
            self.policy.lookup(prompts, responses),
            self.reference.lookup(prompts, responses),
            strict=True,
        )
        return [self.beta * (policy - reference) for policy, reference in scored]
