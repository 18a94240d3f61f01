"""What `reference` may say: a model, several of them, or one of the references that are no model.

Here are the words and what can be checked about them before any weights are read.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokenq.errors import UserError
from tokenq.models.checkpoint import inspect
from tokenq.models.loading import load_tokenizer
from tokenq.models.reference import AdapterOff
from tokenq.models.vocabulary import check_rows, check_same_vocabulary, embedding_rows
from tokenq.training.config import PreferenceConfig

COUNTING = "none"
UNIFORM = "uniform"
MARGINAL = "marginal"

One = PreTrainedModel | PeftModel | AdapterOff | str | Path
"""One reference: a loaded model, the name of one, or one of the words above."""
Given = One | Sequence[One] | None


def each_of(given: Given) -> list[One | None]:
    """The references of a mixture, one by one; ``[None]`` stands for the default reference.

    "A,B" is the list of A and B unless it is the path of a folder. Raises ``UserError`` for an
    empty name and for "none" among others, which is no distribution that could be averaged.
    """
    if isinstance(given, str) and "," in given and not Path(given).exists():
        given = given.split(",")
    if given is None or not isinstance(given, list | tuple):
        return [given.strip() if isinstance(given, str) else cast(One | None, given)]
    flat = [one for item in given for one in each_of(item)]
    if not flat or "" in flat:
        raise UserError(f"reference: {list(given)!r} holds an empty name; give names of models")
    if len(flat) > 1 and COUNTING in flat:
        raise UserError(
            "reference: none is the counting measure and cannot be averaged with others; "
            "accepted beside other references: names of models, uniform, marginal, marginal:NAME"
        )
    return flat


def is_marginal(one: One | None) -> bool:
    """Whether this is "marginal" or "marginal:NAME"."""
    return isinstance(one, str) and one.partition(":")[0] == MARGINAL


def model_of(one: One | None) -> One | None:
    """The model under a reference, loaded or by name; None: the default one."""
    if isinstance(one, str) and is_marginal(one):
        return one.partition(":")[2] or None
    return one


ADAPTER_STAYS = (
    "sync_ref_model: an adapter's reference is its base, which the policy shares and which cannot "
    "move; train all weights, or set it to false"
)


def check_form(
    given: Given, fresh_adapter: bool, comparing: Sequence[str], args: PreferenceConfig
) -> None:
    """Raise ``UserError`` for a mixture, a constant or a marginal where one model is asked for.

    fresh_adapter: the policy's adapter is added for this run
    comparing:     objectives that compare whole distributions
    """
    if args.sync_ref_model:
        _check_is_one_model(given, "sync_ref_model: moves the weights of one model")
        if fresh_adapter:
            raise UserError(ADAPTER_STAYS)
    if comparing:
        names = ", ".join(comparing)
        _check_is_one_model(given, f"loss_type {names}: compares the distributions of one model")


def _check_is_one_model(given: Given, why: str) -> None:
    each = each_of(given)
    if len(each) > 1 or is_marginal(each[0]) or each[0] in (COUNTING, UNIFORM):
        shown = ", ".join(map(str, each))
        raise UserError(f"{why}, but reference is {shown}; accepted: the name of a model, or unset")


def trusts_remote_code(args: PreferenceConfig) -> bool:
    """Whether the run may execute model code that comes with weights."""
    options = cast(dict[str, Any], args.model_init_kwargs or {})
    return bool(options.get("trust_remote_code", False))


def check_vocabularies(
    given: Given, tokenizer: PreTrainedTokenizerBase, policy: str, args: PreferenceConfig
) -> None:
    """Raise ``UserError`` unless token ids mean the same to every reference as to the policy."""
    for one in each_of(given):
        model = model_of(one)
        if isinstance(model, PreTrainedModel | PeftModel):
            check_rows(tokenizer, embedding_rows(model), str(model.config._name_or_path))
        elif isinstance(model, str | Path) and model not in (COUNTING, UNIFORM):
            check_vocabulary_of(model, tokenizer, policy, trusts_remote_code(args))


def check_vocabulary_of(
    name: str | Path, tokenizer: PreTrainedTokenizerBase, policy: str, trust: bool
) -> None:
    """Raise ``UserError`` unless the named model has the tokens of `policy`; reads no weights."""
    checkpoint = inspect(name, trust_remote_code=trust)
    owner = checkpoint if checkpoint.has_tokenizer() else checkpoint.base
    if owner is not None and owner.has_tokenizer():
        theirs = load_tokenizer(owner, trust_remote_code=trust)
        check_same_vocabulary(tokenizer, theirs, policy or "the policy", checkpoint.name)
    if checkpoint.base is None:
        rows = int(checkpoint.config.get_text_config().vocab_size)
        check_rows(tokenizer, rows, checkpoint.name)


def start_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that a text without a prompt follows: BOS, or EOS for models without one."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(cast(int, token))
    raise UserError("reference: marginal scores after BOS, but the tokenizer has no BOS and no EOS")
