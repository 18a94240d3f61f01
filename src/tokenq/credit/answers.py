"""An answer as it is read: its text, its tokens, and which of them the model wrote itself."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from tokenq.data.encoding import EncodedResponse, ResponseEncoder, encode
from tokenq.data.formats import Messages
from tokenq.data.prefix import common_prefix_length
from tokenq.data.templates import TemplateRefusal, template_options
from tokenq.data.turns import UnclearTurns, turn_segments
from tokenq.errors import UserError


@dataclass(frozen=True)
class Answer:
    """One answer of a prompt.

    text:    what the offsets refer to: the answer's content, or, of an answer of several messages,
             all of it as the chat template writes it, the others' words and the headers included
    encoded: its tokens
    turns:   number of the model's turn, from 0, that each response token belongs to, or OTHERS (-1)
             for what somebody else wrote; None for an answer of one turn
    """

    text: str
    encoded: EncodedResponse
    turns: tuple[int, ...] | None


def read_answer(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Messages,
    response: str | Messages,
    *,
    tools: Any = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> Answer:
    """Tokenise one answer, as :func:`tokenq.data.encode` does.

    Raises UserError as that does, and for an answer of several messages that does not begin with
    the model's own, or whose turns the chat template does not tell apart.
    """
    given = {"tools": tools, "chat_template_kwargs": chat_template_kwargs}
    encoded = encode(tokenizer, prompt, response, **given)
    if isinstance(response, str):
        return Answer(response, encoded, None)
    if len(response) == 1:
        return Answer(response[0]["content"], encoded, None)
    if response[0]["role"] != "assistant":
        raise UserError(
            f"an answer of {len(response)} messages begins with the role "
            f"'{response[0]['role']}'; accepted: 'assistant' (what comes before is the prompt)"
        )
    return _several_turns(tokenizer, prompt, response, template_options(given), encoded)


def _several_turns(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Messages,
    response: Messages,
    options: Mapping[str, Any],
    encoded: EncodedResponse,
) -> Answer:
    # `encode` has been through all of this: a text prompt or a rewritten answer came to an end.
    assert not isinstance(prompt, str)
    encoder = ResponseEncoder(tokenizer)
    [rendering] = encoder.render(prompt, [response], options)
    [tokens] = encoder.tokenise([rendering])
    assert rendering.span is not None
    try:
        numbers = turn_segments(encoder, prompt, response, options, rendering, tokens)
    except (UnclearTurns, TemplateRefusal) as error:
        raise UserError(
            f"the chat template does not tell the model's turns from the others': {error}; "
            "accepted: an answer of one message, or a template that ends each turn with a special "
            "token and writes it in the same way whatever follows"
        ) from error
    start = common_prefix_length(rendering.prompt, rendering.text)
    span = (start, rendering.span[1])
    text = rendering.text[slice(*span)]
    offsets = encoder.offsets(replace(rendering, span=span, lead=0), tokens, len(text))
    whole = replace(encoded, offsets=offsets[tokens.common :])
    return Answer(text, whole, tuple(numbers[tokens.common :]))
