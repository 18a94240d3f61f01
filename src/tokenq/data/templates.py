"""From messages to the text that a model reads, and where the response stands in that text."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from tokenq.data.formats import Messages
from tokenq.data.prefix import common_prefix_length
from tokenq.errors import UserError

# Stands in for a response to learn where a template puts it; no template trims or parses it.
_PROBE = "tokenqResponseStandsHere"


class TemplateRefusal(Exception):
    """A chat template that does not render a conversation; the message is the template's."""


class EmptyResponse(Exception):
    """A response of which no character is left in the rendered text."""


@dataclass(frozen=True)
class Rendering:
    """A prompt and its response as text.

    ``prompt``: the prompt alone, as a model is asked to answer it. ``text``: prompt and response.
    ``span``: (start, end) characters of the response in ``text``; None if the template rewrote it.
    ``lead``: characters at the response's beginning that are not in the span (a template trims).
    ``tail``: what the template writes after the response; None where that cannot be told.
    ``templated``: whether a chat template wrote the text (then it also wrote the special tokens).
    """

    prompt: str
    text: str
    span: tuple[int, int] | None
    lead: int
    tail: str | None
    templated: bool


def render_text(prompt: str, response: str) -> Rendering:
    """Plain text: the response follows the prompt directly.

    Raises:
        EmptyResponse: the response is empty.
    """
    if not response:
        raise EmptyResponse
    end = len(prompt) + len(response)
    return Rendering(prompt, prompt + response, (len(prompt), end), 0, "", False)


def template_options(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row's `tools` and `chat_template_kwargs` (TRL's columns) hand to the template."""
    tools, kwargs = row.get("tools"), row.get("chat_template_kwargs")
    tools = json.loads(tools) if isinstance(tools, str) else tools
    kwargs = json.loads(kwargs) if isinstance(kwargs, str) else kwargs
    given = {name: value for name, value in (kwargs or {}).items() if value is not None}
    return {**given, **({"tools": tools} if tools else {})}


class ChatRenderer:
    """Renders conversations with a tokenizer's chat template.

    Raises:
        UserError: the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        if not tokenizer.chat_template:
            raise UserError(
                f"the tokenizer {tokenizer.name_or_path!r} has no chat template and the data are "
                "messages; accepted: text prompts and answers, or a tokenizer with a chat template"
            )
        self._tokenizer = tokenizer
        self._usual_tail: str | None = None

    def prompt(self, prompt: Messages, options: Mapping[str, Any]) -> str:
        """The prompt with the header of the assistant's turn. Raises :class:`TemplateRefusal`."""
        return self._apply(prompt, options, add_generation_prompt=True)

    def conversation(self, messages: Messages, options: Mapping[str, Any]) -> str:
        """A conversation as it stands, no turn begun. Raises :class:`TemplateRefusal`."""
        return self._apply(messages, options, add_generation_prompt=False)

    def response(
        self, prompt: Messages, rendered_prompt: str, response: Messages, options: Mapping[str, Any]
    ) -> Rendering:
        """Prompt and response through the template, the last message's text located in it.

        Raises:
            TemplateRefusal: the template does not render the conversation.
            EmptyResponse: nothing of the response is left.
        """
        text = self._apply([*prompt, *response], options, add_generation_prompt=False)
        content = response[-1].get("content", "")
        start, end = len(rendered_prompt), len(rendered_prompt) + len(content)
        plain = text.startswith(rendered_prompt) and text.startswith(content, start)
        if plain and content and len(response) == 1 and text[end:] == self._usual_tail:
            return Rendering(rendered_prompt, text, (start, end), 0, text[end:], True)
        return self._search(prompt, rendered_prompt, response, text, options)

    def _search(
        self,
        prompt: Messages,
        rendered_prompt: str,
        response: Messages,
        text: str,
        options: Mapping[str, Any],
    ) -> Rendering:
        """Locate the response by rendering the same conversation with a known answer."""
        probe_turn = {**response[-1], "content": _PROBE}
        probe = self._apply(
            [*prompt, *response[:-1], probe_turn], options, add_generation_prompt=False
        )
        content = response[-1].get("content", "")
        head, found, tail = probe.partition(_PROBE)
        if not found:  # the template rewrites answers, though maybe not this one
            start = common_prefix_length(rendered_prompt, text)
            span = _find_once(text, content, start, len(text))
            return Rendering(rendered_prompt, text, span, 0, None, True)
        self._usual_tail = tail
        # A template may write something else around this answer than around the probe.
        start = common_prefix_length(head, text)
        end = len(text) - common_prefix_length(tail[::-1], text[start:][::-1])
        if not text[start:end].strip():
            raise EmptyResponse
        span = _find_once(text, content, start, end)
        lead = len(content) - len(content.lstrip())
        if span is None:
            span = _find_once(text, content.strip(), start, end)
        else:
            lead = 0
        known_tail = tail if text.endswith(tail) else None
        return Rendering(rendered_prompt, text, span, lead, known_tail, True)

    def _apply(
        self, messages: Messages, options: Mapping[str, Any], *, add_generation_prompt: bool
    ) -> str:
        arguments = {
            **options,
            "tokenize": False,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return str(self._tokenizer.apply_chat_template(messages, **arguments))
        except TemplateError as error:
            raise TemplateRefusal(str(error)) from error


def _find_once(text: str, part: str, start: int, end: int) -> tuple[int, int] | None:
    """Where ``part`` stands in ``text[start:end]``; None if nowhere, or if that is ambiguous."""
    if not part:
        return None
    if text[start:end] == part:
        return start, end
    at = text.find(part, start, end)
    if at < 0 or text.find(part, at + 1, end) >= 0:
        return None
    return at, at + len(part)
