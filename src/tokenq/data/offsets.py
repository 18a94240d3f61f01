"""Which characters of a response stand behind each of its tokens."""

from transformers import PreTrainedTokenizerBase

from tokenq.data.templates import Rendering


def response_offsets(
    tokenizer: PreTrainedTokenizerBase, rendering: Rendering, length: int, lead_in: int
) -> list[tuple[int, int]]:
    """(start, end) in the response for each token of the whole rendered text.

    Args:
        rendering: with a span.
        length: characters of the response as it was given.
        lead_in: tokens before the text's own (BOS); they get (0, 0).
    """
    assert rendering.span is not None
    start, end = rendering.span
    encoding = tokenizer(
        rendering.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    spans = _without_gaps(
        tokenizer, rendering.text, encoding["input_ids"], encoding["offset_mapping"]
    )
    offsets = [(0, 0)] * lead_in
    for first, last in spans:
        first, last = max(first, start), min(last, end)
        if first < last:
            offsets.append((first - start + rendering.lead, last - start + rendering.lead))
        else:
            place = length if first >= end else 0
            offsets.append((place, place))
    return offsets


def _without_gaps(
    tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int], spans: list[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Give the blanks that a tokenizer trims off its offsets back to the tokens that hold them.

    Between two tokens, blanks at the end of the first one's text are its own; the rest belongs to
    the token that follows, as byte-level tokenizers write a leading blank.
    """
    filled: list[tuple[int, int]] = []
    reached = 0
    # The end of the text closes the last gap; it is no token.
    for i, (first, last) in enumerate([*spans, (len(text), len(text))]):
        if first > reached and filled:
            before = filled[-1][0]
            own = _trailing_blanks(str(tokenizer.decode([ids[i - 1]])))
            missing = max(0, own - _trailing_blanks(text[before:reached]))
            reached += min(first - reached, missing)
            filled[-1] = (before, reached)
        filled.append((min(first, reached), last))
        reached = max(reached, last)
    return filled[:-1]


def _trailing_blanks(text: str) -> int:
    return len(text) - len(text.rstrip())
