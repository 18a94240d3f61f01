"""Prompts and responses to the token ids that a judging model reads; nothing is ever cut off."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from tokenq.data.encoding import encode, encode_prompt
from tokenq.errors import UserError
from tokenq.judges.comparisons import Prompt, shown


def encode_responses(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    longest: int | None,
    name: str,
) -> tuple[list[list[int]], list[list[int]]]:
    """Ids of prompts and of responses with their end token (:func:`tokenq.data.encode`).

    A model may well answer nothing: an empty response is the end token alone.

    longest: the most tokens of prompt and response; None for no limit

    Raises UserError, naming the judge and the prompt, for a row that is longer or cannot be encoded
    """
    found: tuple[list[list[int]], list[list[int]]] = [], []
    for prompt, response in zip(prompts, responses, strict=True):
        try:
            sides = _encode(tokenizer, prompt, response)
        except UserError as error:
            raise UserError(f"judge {name}, prompt {shown(prompt)}: {error}") from error
        check_length(sum(map(len, sides)), longest, name, prompt)
        for side, ids in zip(found, sides, strict=True):
            side.append(ids)
    return found


def check_length(length: int, longest: int | None, name: str, prompt: Prompt) -> None:
    """Raise UserError for a row that a judge cannot read whole: its score would be another text's.

    Arguments as in :func:`encode_responses`.
    """
    if longest is not None and length > longest:
        raise UserError(
            f"judge {name}, prompt {shown(prompt)}: prompt and response have {length} tokens; "
            f"accepted: {longest}, what the model reads"
        )


def _encode(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, response: str
) -> tuple[list[int], list[int]]:
    if not response.strip():
        return encode_prompt(tokenizer, prompt), [int(tokenizer.eos_token_id)]
    row = encode(tokenizer, prompt, response)
    return row.prompt_ids, row.response_ids
