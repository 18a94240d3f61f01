"""Credit of a response that is given as tokens, as a search or a sampler has written it.

The tokenizer need not cut the text into the same tokens again, so nothing is tokenised here: the
characters of each token are read off the text as it grows token by token.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from tokenq.credit.answers import Answer
from tokenq.credit.api import assemble
from tokenq.credit.result import Credit
from tokenq.credit.vocabulary import VocabularyReader
from tokenq.data.encoding import EncodedResponse
from tokenq.data.prefix import common_prefix_length
from tokenq.errors import UserError
from tokenq.models.pair import Pair, context_length, reference_of
from tokenq.models.vocabulary import added_special

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer writes for bytes that are no whole character."""


def credit_of_tokens(
    pair: Pair, prompt_ids: Sequence[int], token_ids: Sequence[int], beta: float = 0.1
) -> Credit:
    """Return what each of these tokens is worth to `pair.policy`; see :func:`tokenq.credit`.

    prompt_ids: the prompt's tokens, at least one; `Credit.prompt` is their text, special tokens
                included
    token_ids:  the response's, with its end token if it has one; `Credit.response` is their text
                without special tokens, a stop string at its end included

    Raises UserError for a pair without a reference or a tokenizer, tokens that it does not have,
    none at all, or more than the models can read.
    """
    reference_of(pair)
    tokenizer = pair.tokenizer
    prompt, response = list(map(int, prompt_ids)), list(map(int, token_ids))
    _check(pair, prompt, response)
    text, offsets = token_offsets(tokenizer, response)
    answer = Answer(text, EncodedResponse(prompt, response, False, offsets), None)
    reader = VocabularyReader(pair, prompt, response)
    facts = reader.facts
    scores = facts.logps, facts.ref_logps
    asked = str(tokenizer.decode(prompt))
    return assemble(pair, asked, answer, scores, beta, facts=facts, vocabulary=reader)


def token_offsets(
    tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]
) -> tuple[str, list[tuple[int, int]]]:
    """The text of tokens, special ones left out, and the (start, end) characters of each in it.

    They never go back, and together they hold every character. Tokens that are bytes of one
    character all have it, also where the last of its bytes are missing; special tokens, and such as
    the text does not show, have an empty span where they stand.
    """
    special = set(tokenizer.all_special_ids) | added_special(tokenizer)
    written = [token for token in token_ids if token not in special]
    whole = _decoded(tokenizer, written)
    offsets: list[tuple[int, int]] = []
    done = count = 0
    for token in token_ids:
        if token in special:
            offsets.append((done, done))
            continue
        count += 1
        grown = _decoded(tokenizer, written[:count])
        start, end = done, max(done, common_prefix_length(grown, whole))
        done = end
        if end < len(whole) and grown[end:].startswith(_UNFINISHED):
            end += 1  # some bytes of a character whose others follow
        elif start == end and whole[:end].endswith(_UNFINISHED):
            start = max(start - 1, offsets[-1][0])  # one more byte of what stays unfinished
        offsets.append((start, end))
    return whole, offsets


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def _check(pair: Pair, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> None:
    for name, ids in (("the prompt", prompt_ids), ("the response", token_ids)):
        if not ids:
            raise UserError(f"{name} has no tokens; accepted: at least one")
    size = max(pair.tokenizer.get_vocab().values()) + 1
    wrong = next((each for each in [*prompt_ids, *token_ids] if not 0 <= each < size), None)
    if wrong is not None:
        raise UserError(f"token {wrong} is unknown to the tokenizer; accepted: 0 to {size - 1}")
    longest, length = context_length(pair), len(prompt_ids) + len(token_ids)
    if longest is not None and length > longest:
        raise UserError(
            f"prompt and response have {length} tokens; accepted: {longest}, what the models read"
        )
