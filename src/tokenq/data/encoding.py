"""Prompt and response to token ids: the boundary, BOS, EOS, and the text behind each token.

The one place where this happens: preparation of training data and credit both come here.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from tokenq.data.formats import MalformedRow, Messages, checked_messages
from tokenq.data.offsets import response_offsets
from tokenq.data.prefix import common_prefix_length
from tokenq.data.templates import (
    ChatRenderer,
    EmptyResponse,
    Rendering,
    TemplateRefusal,
    render_text,
    template_options,
)
from tokenq.errors import UserError


@dataclass(frozen=True)
class EncodedResponse:
    """Token ids of a prompt and its response.

    ``response_ids``: ends with the turn's end token, once. ``boundary_shifted``: the prompt
    tokenised alone is no prefix of the whole, so that the response begins earlier (by token).
    ``offsets``: for each response token the (start, end) characters of the response that it covers.
    They never go back; every character of the response that the response tokens hold is in one
    token, or in all tokens that share it (bytes of one character). Tokens of the template have an
    empty span: (0, 0) before the response's text, (len, len) after it, as has the end token.
    """

    prompt_ids: list[int]
    response_ids: list[int]
    boundary_shifted: bool
    offsets: list[tuple[int, int]]


@dataclass(frozen=True)
class TokenisedText:
    """Ids of a rendered prompt and response, before they are parted.

    ``ids``: the whole, ending with the turn's end token. ``common``: how many of its first tokens
    are also the prompt's when that is tokenised alone. ``prompt_length``: tokens of that prompt.
    ``empty``: the response added no token (a tokenizer may drop blanks).
    """

    ids: list[int]
    common: int
    prompt_length: int
    empty: bool

    @property
    def boundary_shifted(self) -> bool:
        """Whether the prompt alone is no prefix of the whole."""
        return self.common < self.prompt_length


def encode(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Messages,
    response: str | Messages,
    *,
    tools: Any = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> EncodedResponse:
    """Token ids of one prompt and response, and the characters of the response behind each token.

    A message prompt goes through the chat template; a text prompt is followed by the response
    directly, after the special tokens that the tokenizer begins a text with. The boundary is the
    longest common token prefix of the prompt alone and the whole.

    Args:
        response: text, or messages that end with the answer (offsets then refer to its content).
        tools, chat_template_kwargs: further arguments of the chat template.

    Raises:
        UserError: the response is empty, or the template refuses or rewrites it, or the tokenizer
            has no EOS token, no chat template for messages, or no character offsets.
    """
    encoder = ResponseEncoder(tokenizer)
    options = template_options({"tools": tools, "chat_template_kwargs": chat_template_kwargs})
    try:
        [rendering] = encoder.render(prompt, [response], options)
    except EmptyResponse:
        raise UserError("the response is empty; accepted: at least one character") from None
    except TemplateRefusal as error:
        raise UserError(f"the chat template refuses the conversation: {error}") from error
    if rendering.span is None:
        raise UserError(
            "the chat template rewrites the response, so that its tokens cannot be told from the "
            "template's; accepted: a response that the template keeps as it is"
        )
    [tokens] = encoder.tokenise([rendering])
    if tokens.empty:
        raise UserError(
            "the response has no token; accepted: text that the tokenizer does not drop"
        )
    prompt_ids = encoder.prompt_ids(tokens.ids[: tokens.common])
    content = response if isinstance(response, str) else response[-1]["content"]
    offsets = encoder.offsets(rendering, tokens, len(content))
    return EncodedResponse(
        prompt_ids,
        tokens.ids[tokens.common :],
        tokens.boundary_shifted,
        offsets[tokens.common :],
    )


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Messages,
    *,
    tools: Any = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[int]:
    """Token ids of a prompt that a model is to answer (see :func:`encode`).

    Raises:
        UserError: no token is left, or the template refuses the conversation.
    """
    encoder = ResponseEncoder(tokenizer)
    options = template_options({"tools": tools, "chat_template_kwargs": chat_template_kwargs})
    try:
        text, templated = encoder.render_prompt(prompt, options)
    except TemplateRefusal as error:
        raise UserError(f"the chat template refuses the conversation: {error}") from error
    return encoder.prompt_ids(encoder.ids([text], templated)[0])


class ResponseEncoder:
    """Renders and tokenises many prompts and responses with one tokenizer.

    Raises:
        UserError: the tokenizer has no EOS token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        if tokenizer.eos_token_id is None:
            raise UserError(
                f"the tokenizer {tokenizer.name_or_path!r} has no EOS token, so no response "
                "could end; accepted: a tokenizer with eos_token set"
            )
        self._tokenizer = tokenizer
        self._eos: int = tokenizer.eos_token_id
        self._opening = _opening_tokens(tokenizer)
        self._chat: ChatRenderer | None = None
        self._ends: dict[str, tuple[int, int] | None] = {}
        specials = {
            str(token): number
            for number, token in tokenizer.added_tokens_decoder.items()
            if token.special
        }
        specials[tokenizer.eos_token] = self._eos
        self._specials = specials
        longest_first = sorted(specials, key=len, reverse=True)
        self._special_pattern = re.compile("|".join(map(re.escape, longest_first)))

    def render(
        self,
        prompt: str | Messages,
        responses: Sequence[str | Messages],
        options: Mapping[str, Any],
    ) -> list[Rendering]:
        """All responses of one prompt as text. Raises EmptyResponse, TemplateRefusal, UserError."""
        if isinstance(prompt, str):
            texts = [each for each in responses if isinstance(each, str)]
            if len(texts) < len(responses):
                raise UserError(
                    "a text prompt has a message response; accepted: both text or messages"
                )
            return [render_text(prompt, each) for each in texts]
        rendered, _ = self.render_prompt(prompt, options)
        return [
            self._chat_renderer().response(prompt, rendered, _turns(each), options)
            for each in responses
        ]

    def render_prompt(self, prompt: str | Messages, options: Mapping[str, Any]) -> tuple[str, bool]:
        """The prompt as text, and whether a template wrote it.

        Raises TemplateRefusal, UserError.
        """
        if isinstance(prompt, str):
            return prompt, False
        try:
            messages = checked_messages(prompt, "prompt", answer=False)
        except MalformedRow as error:
            raise UserError(str(error)) from None
        return self._chat_renderer().prompt(messages, options), True

    def conversation(self, messages: Messages, options: Mapping[str, Any]) -> str:
        """A whole conversation as text. Raises TemplateRefusal, UserError."""
        return self._chat_renderer().conversation(messages, options)

    def special_spans(self, text: str) -> list[tuple[int, int]]:
        """(start, end) characters of the special tokens that stand in ``text``."""
        return [match.span() for match in self._special_pattern.finditer(text)]

    def ends_turn(self, tail: str) -> bool:
        """Whether a template's ``tail`` behind an answer has a token that ends the turn."""
        return self._end_token(tail) is not None

    def tokenise(self, renderings: Sequence[Rendering]) -> list[TokenisedText]:
        """Ids of all renderings, in one call of the tokenizer for each kind of text."""
        prompts = self._ids_by_text({(r.prompt, r.templated) for r in renderings})
        wholes = self._ids_by_text({(r.text, r.templated) for r in renderings})
        tokenised = []
        for rendering in renderings:
            prompt = prompts[rendering.prompt, rendering.templated]
            whole = wholes[rendering.text, rendering.templated]
            common = common_prefix_length(prompt, whole)
            ended = self._end(whole, common, rendering.tail)
            tokenised.append(TokenisedText(ended, common, len(prompt), common == len(whole)))
        return tokenised

    def ids(self, texts: Sequence[str], templated: bool) -> list[list[int]]:
        """Ids of rendered texts. A template writes its own special tokens, so none are added."""
        if not texts:
            return []
        batch = self._tokenizer(
            list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False
        )["input_ids"]
        return batch if templated else [self._opened(ids) for ids in batch]

    def offsets(
        self, rendering: Rendering, tokens: TokenisedText, length: int
    ) -> list[tuple[int, int]]:
        """Characters of the response behind each of ``tokens.ids`` (see :class:`EncodedResponse`).

        Args:
            rendering: with a span.
            length: characters of the response as it was given.

        Raises:
            UserError: the tokenizer gives no character offsets.
        """
        if not self._tokenizer.is_fast:
            raise UserError(
                f"the tokenizer {self._tokenizer.name_or_path!r} gives no character offsets; "
                "accepted: a fast tokenizer (tokenizer.json)"
            )
        # Ids that stand before those of the rendered text itself.
        [opened] = self.ids([rendering.text], rendering.templated)
        [bare] = self.ids([rendering.text], templated=True)
        lead_in = len(opened) - len(bare)
        offsets = response_offsets(self._tokenizer, rendering, length, lead_in)
        # An EOS that the text does not hold is behind it all.
        offsets += [(length, length)] * (len(tokens.ids) - len(offsets))
        return offsets[: len(tokens.ids)]

    def prompt_ids(self, ids: list[int]) -> list[int]:
        """``ids``, or BOS alone where they are empty: the first response token needs a context.

        Raises:
            UserError: the tokenizer has no BOS token either.
        """
        if ids:
            return ids
        if self._tokenizer.bos_token_id is None:
            raise UserError(
                "the prompt has no token of its own and the tokenizer no BOS token; "
                "accepted: a prompt that is not empty"
            )
        return [self._tokenizer.bos_token_id]

    @property
    def has_bos(self) -> bool:
        """Whether the tokenizer has a BOS token."""
        return self._tokenizer.bos_token_id is not None

    def is_bos(self, token: int) -> bool:
        """Whether ``token`` is the tokenizer's BOS token."""
        return token == self._tokenizer.bos_token_id

    def _chat_renderer(self) -> ChatRenderer:
        if self._chat is None:
            self._chat = ChatRenderer(self._tokenizer)
        return self._chat

    def _ids_by_text(self, texts: set[tuple[str, bool]]) -> dict[tuple[str, bool], list[int]]:
        found: dict[tuple[str, bool], list[int]] = {}
        for templated in (False, True):
            chosen = [text for text, kind in texts if kind is templated]
            for text, ids in zip(chosen, self.ids(chosen, templated), strict=True):
                found[text, templated] = ids
        return found

    def _opened(self, ids: list[int]) -> list[int]:
        if self._opening and ids[:1] == self._opening[:1] == [self._tokenizer.bos_token_id]:
            return ids  # the text itself begins with BOS
        return [*self._opening, *ids]

    def _end(self, ids: list[int], boundary: int, tail: str | None) -> list[int]:
        """Cut what the template writes after the turn's end token; a turn without one gets EOS."""
        end = self._end_token(tail) if tail is not None else (self._eos, 1)
        if end is not None:
            token, count = end
            at = _last_places(ids, token, boundary, count)
            if at is not None:
                ids = ids[: at + 1]
        ends = end[0] if end is not None else self._eos
        if not ids or ids[-1] not in (ends, self._eos):
            ids = [*ids, self._eos]
        while len(ids) - boundary > 1 and ids[-1] == ids[-2] == ends:
            ids = ids[:-1]  # the response's text brings its own end token
        return ids

    def _end_token(self, tail: str) -> tuple[int, int] | None:
        """The turn's end token in a template's tail, and its place counted from the end of the ids.

        EOS if the tail has it, else the first special token there (such as Gemma's
        `<end_of_turn>`): that is what the model was taught to stop at.
        """
        if tail not in self._ends:
            found = [self._specials[each] for each in self._special_pattern.findall(tail)]
            bos = self._tokenizer.bos_token_id
            ends = [token for token in found if token == self._eos]
            ends = ends or [token for token in found if token != bos]
            self._ends[tail] = (ends[0], ends.count(ends[0])) if ends else None
        return self._ends[tail]


def _turns(response: str | Messages) -> Messages:
    if not isinstance(response, str):
        return response
    if not response.strip():
        raise EmptyResponse
    return [{"role": "assistant", "content": response}]


def _opening_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that the tokenizer puts before a text (BOS); what it puts behind is not used."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    dressed = tokenizer("a", add_special_tokens=True)["input_ids"]
    for start in range(len(dressed) - len(bare) + 1):
        if dressed[start : start + len(bare)] == bare:
            return dressed[:start]
    return []


def _last_places(ids: list[int], token: int, boundary: int, count: int) -> int | None:
    """Index of the ``count``-th ``token`` from the end, not before ``boundary``."""
    for at in range(len(ids) - 1, boundary - 1, -1):
        if ids[at] == token:
            count -= 1
            if not count:
                return at
    return None
