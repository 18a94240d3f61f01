"""Which tokens of an answer with several assistant turns are the model's own, turn by turn.

Boundaries come from the chat template: a turn begins where the template would ask the model for
it, and ends where the template would have ended it had the conversation stopped there.
"""

from collections.abc import Mapping
from typing import Any

from tokenq.data.encoding import ResponseEncoder, TokenisedText
from tokenq.data.formats import Messages
from tokenq.data.prefix import common_prefix_length
from tokenq.data.templates import Rendering

OTHERS = -1
"""Segment number of a token that somebody else wrote: a user, a tool, the template."""


class UnclearTurns(Exception):
    """A template whose rendering of a turn depends on what follows it; the message says how."""


def turn_segments(
    encoder: ResponseEncoder,
    prompt: Messages,
    answer: Messages,
    options: Mapping[str, Any],
    whole: Rendering,
    tokens: TokenisedText,
) -> list[int]:
    """Turn number, from 0, of each of ``tokens.ids``; :data:`OTHERS` between two turns.

    A turn's tokens are those that would be its answer in a row of its own: what follows the
    rendered conversation so far, up to and with the turn's end token. What precedes the first
    turn gets 0; it is the prompt, which the caller cuts off.

    Args:
        answer: messages that begin and end with an assistant turn.
        options: further arguments of the template.
        whole, tokens: prompt and answer as they are rendered and tokenised.

    Raises:
        UnclearTurns: the template does not only add text as the conversation goes on, or gives a
            turn no end token.
        TemplateRefusal: it does not render the conversation up to a turn.
    """
    places = [place for place, turn in enumerate(answer) if turn["role"] == "assistant"]
    segments = [0] * len(tokens.ids)
    if len(places) == 1:
        return segments
    renderings = []
    for number, place in enumerate(places):
        opening, _ = encoder.render_prompt([*prompt, *answer[:place]], options)
        if number and not whole.text.startswith(opening):
            raise UnclearTurns(f"what precedes turn {number} changes with later turns")
        if place < len(answer) - 1:
            ended = encoder.conversation([*prompt, *answer[: place + 1]], options)
            renderings.append(_ended_turn(encoder, opening, ended, whole.text, number))
        else:
            renderings.append(Rendering(opening, whole.text, None, 0, whole.tail, True))
    begun = 0
    for number, turn in enumerate(encoder.tokenise(renderings)):
        end = len(turn.ids)
        if turn.ids != tokens.ids[:end]:
            raise UnclearTurns(f"turn {number} is tokenised otherwise with later turns")
        if number:
            segments[begun : turn.common] = [OTHERS] * (turn.common - begun)
            segments[turn.common : end] = [number] * (end - turn.common)
        begun = end
    return segments


def _ended_turn(
    encoder: ResponseEncoder, opening: str, ended: str, text: str, number: int
) -> Rendering:
    """The conversation up to the end of one turn, as it stands in the whole ``text``.

    A template may close a whole conversation with more than a turn (Phi-3 adds EOS): special
    tokens and blanks behind the turn's own end need not go on into ``text``.
    """
    shared = common_prefix_length(ended, text)
    closing = _closing(ended, encoder.special_spans(ended))
    closing = max(closing, common_prefix_length(opening, ended))
    if shared < closing:
        raise UnclearTurns(f"turn {number} changes with later turns")
    tail = ended[closing:shared]
    if not encoder.ends_turn(tail):
        raise UnclearTurns(f"turn {number} has no end token")
    return Rendering(opening, text[:shared], None, 0, tail, True)


def _closing(text: str, specials: list[tuple[int, int]]) -> int:
    """Where the special tokens and blanks begin that ``text`` ends with."""
    closing = len(text.rstrip())
    for first, last in reversed(specials):
        if last < closing:
            break
        closing = len(text[:first].rstrip())
    return closing
