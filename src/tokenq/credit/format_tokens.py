"""How much of the credit lies on form: end tokens, line breaks, blanks, punctuation, markup.

Implicit rewards are known to key on surface tokens. A reading in which they hold most of the credit
says little about what the answers claim, and its reader should be told.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

TokenClass = Literal["end", "line break", "blank", "markup", "punctuation", "content"]
FORMAT_CLASSES: tuple[TokenClass, ...] = get_args(TokenClass)[:-1]

DENSITY = 2.0
"""Warn where the mean |reward| of a format token is at least so many times that of the others..."""
SHARE = 0.25
"""...and format tokens hold at least this share of all |reward|.

If credit did not care for form, both kinds of tokens would have the same mean and the first number
would be 1. Twice that is far outside what the choice of texts does to it. The second number leaves
out answers with hardly any format tokens, where even a high mean changes no sum.
"""

# Marks of Markdown: at the beginning of a line; and fences, emphasis, table bars anywhere.
_LINE_MARK = r"^[ \t]*(?:#{1,6}(?=\s)|[-*+](?=\s)|>+|\d+[.)](?=\s)|[-*_=]{3,}$)"
_MARKUP = re.compile(rf"{_LINE_MARK}|`+|\*+|~~|__+|\|", re.MULTILINE)
# Punctuation that carries meaning.
_SIGNS_OF_CONTENT = frozenset("%‰&@#§†‡/\\")


@dataclass
class ClassTotal:
    """Tokens of one class, and the sum of their |reward|, beta times nats."""

    tokens: int = 0
    credit: float = 0.0


@dataclass
class FormatShare:
    """Counts over the responses of a scored data set.

    ordered, decided: ordered pairs, and those of them whose margin changes its sign (or falls to 0)
                      when the rewards of format tokens are left out
    """

    totals: dict[TokenClass, ClassTotal] = field(
        default_factory=lambda: {name: ClassTotal() for name in get_args(TokenClass)}
    )
    ordered: int = 0
    decided: int = 0

    def add(self, record: Mapping[str, Any]) -> None:
        """Count one line of a scored data set; a skipped row counts nothing."""
        sides = record.get("responses", {})
        for side in sides.values():
            classes = token_classes(side["response"], side["offsets"])
            for kind, reward in zip(classes, side["rewards"], strict=True):
                total = self.totals[kind]
                total.tokens += 1
                total.credit += abs(reward)
        if {"chosen", "rejected"} <= set(sides):
            margin, content = content_margin(record)
            self.ordered += 1
            self.decided += (margin > 0) != (content > 0)

    @property
    def share_of_credit(self) -> float | None:
        """Share of the summed |reward| that format tokens hold; None if there is none."""
        form, whole = self._form_and_whole()
        return form.credit / whole.credit if whole.credit else None

    @property
    def share_of_tokens(self) -> float | None:
        """Share of all tokens that are format tokens; None without tokens."""
        form, whole = self._form_and_whole()
        return form.tokens / whole.tokens if whole.tokens else None

    @property
    def warning(self) -> str | None:
        """What to tell the reader if credit concentrates on form (:data:`DENSITY`)."""
        share, tokens = self.share_of_credit, self.share_of_tokens
        if share is None or tokens is None or share < SHARE:
            return None
        content = self.totals["content"]
        form, _ = self._form_and_whole()
        # A quotient of the two means would divide by zero where there is no content.
        if form.credit * content.tokens < DENSITY * content.credit * form.tokens:
            return None
        heaviest = max(FORMAT_CLASSES, key=lambda name: self.totals[name].credit)
        return (
            f"Format tokens hold {share:.0%} of the credit but are {tokens:.0%} of the tokens "
            f"(most of it: {heaviest}). Much of what is coloured here is form, not content."
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON types: both shares, each class's own shares, and the warning."""
        _, whole = self._form_and_whole()
        return {
            "share_of_credit": self.share_of_credit,
            "share_of_tokens": self.share_of_tokens,
            "by_class": {
                name: {
                    "share_of_credit": each.credit / whole.credit if whole.credit else None,
                    "share_of_tokens": each.tokens / whole.tokens if whole.tokens else None,
                }
                for name, each in self.totals.items()
            },
            "pairs_decided_by_format": self.decided / self.ordered if self.ordered else None,
            "warning": self.warning,
        }

    def _form_and_whole(self) -> tuple[ClassTotal, ClassTotal]:
        form = _sum(self.totals[name] for name in FORMAT_CLASSES)
        return form, _sum(self.totals.values())


def token_classes(text: str, offsets: Sequence[Sequence[int]]) -> list[TokenClass]:
    """The class of each token of a response.

    offsets: (start, end) characters of each token in `text`; empty for tokens that are no text of
             it, which are of class "end"

    A token with any character of content is content. One that mixes forms is a line break if it has
    one, else markup if that is all it has besides blanks, else punctuation. Markup is Markdown's;
    percent signs, slashes and the like count as content, as do symbols such as + or $.
    """
    marked = {at for match in _MARKUP.finditer(text) for at in range(*match.span())}
    return [_class(text, start, end, marked) for start, end in offsets]


def content_margin(record: Mapping[str, Any]) -> tuple[float, float]:
    """Margin of a saved pair, and what is left of it without format tokens, beta times nats."""
    whole, content = 0.0, 0.0
    for sign, name in ((1, "chosen"), (-1, "rejected")):
        side = record["responses"][name]
        whole += sign * sum(side["rewards"])
        content += sign * sum(_content_rewards(side))
    return whole, content


def _content_rewards(side: Mapping[str, Any]) -> Iterator[float]:
    classes = token_classes(side["response"], side["offsets"])
    pairs = zip(classes, side["rewards"], strict=True)
    return (reward for kind, reward in pairs if kind == "content")


def _class(text: str, start: int, end: int, marked: set[int]) -> TokenClass:
    if start == end:
        return "end"
    visible = [at for at in range(start, end) if not text[at].isspace()]
    if not all(at in marked or _is_punctuation(text[at]) for at in visible):
        return "content"
    if any(each in "\n\r\v\f\x85\u2028\u2029" for each in text[start:end]):
        return "line break"
    if not visible:
        return "blank"
    return "markup" if all(at in marked for at in visible) else "punctuation"


def _is_punctuation(character: str) -> bool:
    category = unicodedata.category(character)
    return category.startswith("P") and character not in _SIGNS_OF_CONTENT


def _sum(parts: Iterable[ClassTotal]) -> ClassTotal:
    whole = ClassTotal()
    for each in parts:
        whole.tokens += each.tokens
        whole.credit += each.credit
    return whole
