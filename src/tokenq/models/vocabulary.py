"""Do a policy, its reference and their tokenizer speak of the same tokens?"""

from torch import nn
from transformers import PreTrainedTokenizerBase

from tokenq.errors import UserError


def check_same_vocabulary(
    policy: PreTrainedTokenizerBase,
    reference: PreTrainedTokenizerBase,
    policy_name: str,
    reference_name: str,
) -> None:
    """Raise ``UserError``, naming the first differing token, unless ids mean the same to both.

    Added and special tokens count. A padding token that is nothing else may differ: it is never
    scored.
    """
    ours, theirs = _by_id(policy), _by_id(reference)
    padding = _padding_only(policy) | _padding_only(reference)
    for token in sorted((ours.keys() | theirs.keys()) - padding):
        if ours.get(token) != theirs.get(token):
            raise UserError(
                f"'{policy_name}' and '{reference_name}' do not share a vocabulary: token id "
                f"{token} is "
                f"{_shown(ours, token)} in the first and {_shown(theirs, token)} in the second; "
                "accepted: two models with the same tokenizer"
            )


def check_rows(tokenizer: PreTrainedTokenizerBase, rows: int, name: str) -> None:
    """Raise ``UserError`` if a token that texts can produce has no row in the model's embeddings.

    More rows than tokens are padding and accepted. So is a special token without a row that neither
    ends a text nor stands in the chat template (image tokens of a model's text-only sibling).
    """
    template = str(tokenizer.chat_template or "")
    harmless = set(tokenizer.all_special_ids) | added_special(tokenizer)
    harmless -= {tokenizer.bos_token_id, tokenizer.eos_token_id}
    for token, text in sorted(_by_id(tokenizer).items()):
        if token >= rows and (token not in harmless or text in template):
            raise UserError(
                f"model '{name}' has embeddings for {rows} tokens, its tokenizer has "
                f"{len(tokenizer)}: token id {token} {text!r} has none; resize the embeddings, or "
                "use "
                "the tokenizer that belongs to the model"
            )


def embedding_rows(model: nn.Module) -> int:
    """Number of token ids that the model can read."""
    return int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]


def _by_id(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    return {token: text for text, token in tokenizer.get_vocab().items()}


def _padding_only(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    used = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id}
    return {tokenizer.pad_token_id} - used - {None}


def added_special(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that were added to the tokenizer as special: decoding can skip them."""
    return {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}


def _shown(by_id: dict[int, str], token: int) -> str:
    return repr(by_id[token]) if token in by_id else "absent"
