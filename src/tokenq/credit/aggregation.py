"""From tokens to words, sentences or any other stretches of characters.

Word boundaries are those of Unicode, sentence boundaries those of a rule-based segmenter; neither
cuts a grapheme, so that combining marks, flags and joined emoji stay whole. Nothing here knows a
model.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import sentencex
import torch
from torch import Tensor
from uniseg.wordbreak import word_boundaries

Characters = tuple[int, int]

_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")
# The narrow no-break space parts the digits of a number, not words.
_BETWEEN_BLANKS = re.compile(r"(?:\S|\u202f)+")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_LINE_END = re.compile("[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")


def word_spans(text: str) -> list[Characters]:
    """(start, end) of each word: letters and digits, with inner apostrophes and hyphens."""
    return [match.span() for match in _WORD.finditer(text)]


def word_units(text: str) -> list[Characters]:
    """Part `text` into words, signs and line ends: (start, end) of each, without gaps.

    Words are those of UAX 29: letters with their marks, numbers with their inner signs, joined
    emoji; scripts without blanks are mostly parted into characters. Blanks belong to the unit that
    follows, as byte-level tokenizers write them (at the end of the text, to the one before), but
    blanks up to the end of a line are a unit of their own.
    """
    units: list[Characters] = []
    start = 0
    for match in _BETWEEN_BLANKS.finditer(text):
        start = _close_lines(text, start, match.start(), units)
        for end in _boundaries(match.group())[1:]:
            units.append((start, match.start() + end))
            start = match.start() + end
    start = _close_lines(text, start, len(text), units)
    if start < len(text):
        start = units.pop()[0] if units else start
        units.append((start, len(text)))
    return units


def sentence_units(text: str, language: str = "en") -> list[Characters]:
    """Part `text` into sentences and the empty lines between them: (start, end), without gaps.

    A sentence has the blanks that follow it. Stops of most scripts count whatever the language;
    which abbreviations are no ends of sentences depends on it.

    language: ISO 639 code, one of those that the package `sentencex` knows; others are read with
              its fallback
    """
    # A lone surrogate, as JSON escapes can bring it into a data set, cannot be handed over.
    found = sentencex.get_sentence_boundaries(language, _LONE_SURROGATE.sub("\ufffd", text))
    return [(each["start_index"], each["end_index"]) for each in found]


@dataclass(frozen=True, eq=False)
class Shares:
    """How T tokens divide among S units of text.

    Token `token[i]` has the part `weight[i]` of its characters in unit `unit[i]`; all are [N]. The
    weights of a token sum to 1, or it has no characters and does not occur.
    """

    tokens: int
    units: int
    token: Tensor
    unit: Tensor
    weight: Tensor

    @classmethod
    def of(cls, offsets: Sequence[Characters], text: str, units: Sequence[Characters]) -> "Shares":
        """Divide tokens among `units` that part `text` without gaps.

        offsets: (start, end) characters of each token in `text`

        A token's characters count equally, blanks only where it has nothing else: the blank that
        begins a token does not tie it to the word before. A token that reaches into two units is
        divided between them, and tokens that share a character (bytes of an emoji) go together.
        """
        owner = [number for number, (start, end) in enumerate(units) for _ in range(start, end)]
        if len(owner) != len(text):
            raise ValueError(f"units hold {len(owner)} characters of a text of {len(text)}")
        found: list[tuple[int, int, float]] = []
        for token, (start, end) in enumerate(offsets):
            visible = [at for at in range(start, end) if not text[at].isspace()]
            counts = Counter(owner[at] for at in visible or range(start, end))
            total = counts.total()
            found += [(token, unit, count / total) for unit, count in counts.items()]
        columns = zip(*found, strict=True) if found else ((), (), ())
        token_column, unit_column, weights = columns
        return cls(
            len(offsets),
            len(units),
            torch.tensor(token_column, dtype=torch.long),
            torch.tensor(unit_column, dtype=torch.long),
            torch.tensor(weights, dtype=torch.float64),
        )

    def sums(self, values: Tensor) -> Tensor:
        """[S] sum of token values [T] in each unit. Tokens without characters are in none."""
        weighted = values.double()[self.token] * self.weight
        return torch.zeros(self.units, dtype=torch.float64).index_add(0, self.unit, weighted)

    def sizes(self) -> Tensor:
        """[S] tokens in each unit, a token that reaches into two counted by its parts."""
        return self.sums(torch.ones(self.tokens))

    def of_units(self, values: Tensor) -> Tensor:
        """[T] for each token the mean of its units' values [S]; 0 for tokens without characters."""
        weighted = values.double()[self.unit] * self.weight
        return torch.zeros(self.tokens, dtype=torch.float64).index_add(0, self.token, weighted)

    def without_characters(self) -> Tensor:
        """[T] bool: the tokens that are in no unit, such as the end token."""
        bare = torch.ones(self.tokens, dtype=torch.bool)
        bare[self.token] = False
        return bare


def sum_over_spans(
    values: Tensor,
    offsets: Sequence[Characters],
    text: str,
    spans: Sequence[Characters],
) -> Tensor:
    """Sum per-token values over stretches of characters: [S] for values [T] and S spans.

    offsets: (start, end) characters of each token in `text`
    spans:   (start, end) characters

    A token's value is shared equally by its characters other than blanks, so that a token that
    reaches into two spans is divided between them, and the blank that begins a token costs
    nothing. Tokens without such a character (the end token, line breaks) belong to no span. Where
    spans cover all the text, their sums add up to that of all other tokens.

    Raises ValueError where values and offsets differ in length.
    """
    if len(values) != len(offsets):
        raise ValueError(f"{len(values)} values but {len(offsets)} offsets")
    per_character = [0.0] * len(text)
    for value, (start, end) in zip(values.tolist(), offsets, strict=True):
        visible = [at for at in range(start, end) if not text[at].isspace()]
        for at in visible:
            per_character[at] += value / len(visible)
    sums = [sum(per_character[start:end]) for start, end in spans]
    return torch.tensor(sums, dtype=values.dtype)


def without_outer_blanks(text: str, start: int, end: int) -> Characters:
    """`text[start:end]` less the blanks around it, or as it is where it has nothing else."""
    inner = text[start:end]
    stripped = inner.strip()
    if not stripped:
        return start, end
    start += len(inner) - len(inner.lstrip())
    return start, start + len(stripped)


def _close_lines(text: str, start: int, end: int, units: list[Characters]) -> int:
    """Append the blanks `start:end` up to their last line end as a unit; return what is left."""
    ends = [match.end() for match in _LINE_END.finditer(text, start, end)]
    if not ends:
        return start
    units.append((start, ends[-1]))
    return ends[-1]


# Texts repeat their words, and the rules are applied in Python. Blanks are boundaries whatever
# stands around them, so that what lies between two can be read alone.
@lru_cache(maxsize=2**16)
def _boundaries(characters: str) -> tuple[int, ...]:
    return tuple(word_boundaries(characters))
