"""Real preferences of real people: pairs of film review sentences, chosen = rated higher."""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, get_args
from urllib.parse import parse_qsl

from tokenq.data.film_snippets import ABOUT, SPLITS, Snippet, snippets
from tokenq.errors import UserError

if TYPE_CHECKING:
    import datasets

__all__ = [
    "ABOUT",
    "INSTRUCTIONS",
    "PairOptions",
    "length_correlation",
    "load",
    "longer_wins",
    "pairs_of",
    "parse_options",
    "snippets",
]

# Neutral: none of them asks for praise, so that the preference is in the ratings alone.
INSTRUCTIONS = (
    "Write one sentence of a film review.",
    "Give me a single sentence from a movie review.",
    "Write a sentence that could appear in a review of a film.",
    "You are reviewing a movie. Write one sentence of your review.",
)


@dataclass(frozen=True)
class PairOptions:
    """How pairs are made. Raises :class:`UserError` for a value that is not accepted."""

    gap: float = 1.0
    """Least difference of the two mean ratings (scale -4..4), above 0.

    A mean of 18 ratings with spread 0.9 has a standard error of about 0.2, a difference of two
    about 0.3: at 1.0 the order of a pair is hardly ever chance, while pairs remain on which
    single people disagree.
    """
    raters: str = "mean"
    """``mean``: all raters together decide (clean labels). ``single``: one rater drawn from each
    text's own decides (honest label noise); a pair given equal ratings shows no preference and is
    left out."""
    seed: int = 0
    """Draws the partners, the raters, the order and the instructions, but not the split."""
    pairs: int | None = None
    """Number of pairs; all that can be made if absent."""
    uses: int = 1
    """In how many pairs one text may be. At 1 the pairs are independent of each other."""
    length_tolerance: float = 0.1
    """The two word counts differ by at most this fraction, so that length gives nothing away.
    A large number (10) switches the matching off."""
    format: str = "chat"
    """``chat``: prompt and answers are messages. ``text``: strings, for models without a chat
    template; the instruction is followed by an empty line."""

    def __post_init__(self) -> None:
        _require("gap", self.gap, 0 < self.gap <= 8, "a number above 0, at most 8")
        _require("raters", self.raters, self.raters in ("mean", "single"), "mean or single")
        _require("pairs", self.pairs, self.pairs is None or self.pairs > 0, "a number above 0")
        _require("uses", self.uses, self.uses > 0, "a number above 0")
        tolerable = 0 <= self.length_tolerance < math.inf
        _require("length_tolerance", self.length_tolerance, tolerable, "a number from 0 up")
        _require("format", self.format, self.format in ("chat", "text"), "chat or text")


def parse_options(query: str) -> PairOptions:
    """Options from ``gap=1.0&raters=single&seed=0``, the part after ``bundled:film-reviews?``.

    Raises :class:`UserError` for an unknown or repeated option or a value that is not accepted.
    """
    known = {field.name: field.type for field in fields(PairOptions)}
    values: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in known:
            raise UserError(
                f"bundled:film-reviews has no option {name!r}; it accepts {', '.join(known)}"
            )
        if name in values:
            raise UserError(f"bundled:film-reviews is given the option {name!r} twice")
        values[name] = _convert(name, text, known[name])
    return PairOptions(**values)


def load(split: str = "train", options: PairOptions | None = None) -> "datasets.Dataset":
    """Pairs of one split: ``prompt``, ``chosen``, ``rejected``, ``chosen_rating``,
    ``rejected_rating``.

    The ratings are the means of all raters, whoever decided: with ``raters="single"`` a label is
    known to be noise where ``chosen_rating < rejected_rating``. No text is in two splits.

    Raises :class:`UserError` for an unknown split, for more pairs than can be made, and when the
    data cannot be had.
    """
    import datasets

    if split not in SPLITS:
        raise UserError(f"bundled:film-reviews has no split {split!r}; it has {', '.join(SPLITS)}")
    options = options or PairOptions()
    draw = random.Random(options.seed)
    texts = [snippet for snippet in snippets().kept if snippet.split == split]
    pairs = [
        ordered
        for pair in _matched(texts, options, draw)
        if (ordered := _judge(pair, options, draw))
    ]
    draw.shuffle(pairs)
    if options.pairs is not None and options.pairs > len(pairs):
        raise UserError(
            f"bundled:film-reviews has {len(pairs)} pairs in split {split!r} with these options "
            f"and {options.pairs} are asked for; raise uses or lower gap"
        )
    rows = [_row(chosen, rejected, options, draw) for chosen, rejected in pairs[: options.pairs]]
    return datasets.Dataset.from_list(rows, info=datasets.DatasetInfo(description=ABOUT))


def pairs_of(
    texts: list[Snippet], options: PairOptions | None = None
) -> list[tuple[Snippet, Snippet]]:
    """Pairs of the given texts, each the better one first; gap, tolerance, raters, uses and seed
    are those of `options`."""
    options = options or PairOptions()
    draw = random.Random(options.seed)
    found = (_judge(pair, options, draw) for pair in _matched(texts, options, draw))
    return [pair for pair in found if pair]


def length_correlation(pairs: "datasets.Dataset") -> float:
    """Correlation, over pairs in either order, of word-count difference and rating difference.

    0 when length says nothing about the rating. Uncentred, since a pair has no first side.
    """
    lengths = [_words(row["chosen"]) - _words(row["rejected"]) for row in pairs]
    ratings = [row["chosen_rating"] - row["rejected_rating"] for row in pairs]
    product = sum(a * b for a, b in zip(lengths, ratings, strict=True))
    scale = sum(a * a for a in lengths) * sum(b * b for b in ratings)
    return float(product / math.sqrt(scale)) if scale else 0.0


def longer_wins(pairs: "datasets.Dataset", length: Callable[[str], int] = len) -> float:
    """Accuracy of the shortcut "the longer text is the better"; ties count half.

    Word counts are matched, so 0.50 there. Praise has longer words (characters: about 0.55) made
    of fewer tokens each (tokens of the bundled model: about 0.47): no matching closes all three.
    """
    wins = 0.0
    for row in pairs:
        chosen, rejected = length(_text(row["chosen"])), length(_text(row["rejected"]))
        wins += 0.5 if chosen == rejected else float(chosen > rejected)
    return wins / len(pairs)


def _matched(
    texts: list[Snippet], options: PairOptions, draw: random.Random
) -> Iterator[tuple[Snippet, Snippet]]:
    """Pairs of similar length whose means differ by the gap; every text in at most ``uses``."""
    made: set[tuple[int, int]] = set()
    for _ in range(options.uses):
        tolerance = math.log1p(options.length_tolerance)
        # Neighbours in this order have similar lengths, and are random among similar lengths.
        keyed = sorted(
            (math.log(t.words) + tolerance * draw.random(), draw.random(), t.number, t)
            for t in texts
        )
        free = [True] * len(keyed)
        for i, (key, _, _, first) in enumerate(keyed):
            if not free[i]:
                continue
            for j in range(i + 1, len(keyed)):
                other_key, _, _, second = keyed[j]
                if other_key - key > 2 * tolerance:
                    break  # from here on every text is too long
                pair = (min(first.number, second.number), max(first.number, second.number))
                if free[j] and pair not in made and _fits(first, second, options.gap, tolerance):
                    free[i] = free[j] = False
                    made.add(pair)
                    yield first, second
                    break


def _fits(first: Snippet, second: Snippet, gap: float, tolerance: float) -> bool:
    similar = abs(math.log(first.words / second.words)) <= tolerance
    return similar and abs(first.mean - second.mean) >= gap


def _judge(
    pair: tuple[Snippet, Snippet], options: PairOptions, draw: random.Random
) -> tuple[Snippet, Snippet] | None:
    """(chosen, rejected), or None where the rater sees no difference."""
    first, second = pair
    if options.raters == "single":
        one, other = draw.choice(first.ratings), draw.choice(second.ratings)
        if one == other:
            return None
        return (first, second) if one > other else (second, first)
    return (first, second) if first.mean > second.mean else (second, first)


def _row(
    chosen: Snippet, rejected: Snippet, options: PairOptions, draw: random.Random
) -> dict[str, Any]:
    instruction = draw.choice(INSTRUCTIONS)
    row: dict[str, Any]
    if options.format == "chat":
        row = {
            "prompt": [{"role": "user", "content": instruction}],
            "chosen": [{"role": "assistant", "content": chosen.text}],
            "rejected": [{"role": "assistant", "content": rejected.text}],
        }
    else:
        prompt = f"{instruction}\n\n"
        row = {"prompt": prompt, "chosen": chosen.text, "rejected": rejected.text}
    return row | {"chosen_rating": chosen.mean, "rejected_rating": rejected.mean}


def _convert(name: str, text: str, kind: Any) -> Any:
    """``text`` as the type of the field: float, str, int, or int of ``int | None``."""
    kind = (get_args(kind) or (kind,))[0]
    try:
        return kind(text)
    except ValueError:
        message = f"bundled:film-reviews: option {name}={text!r} is not a valid {kind.__name__}"
        raise UserError(message) from None


def _require(name: str, value: object, accepted: bool, what: str) -> None:
    if not accepted:
        raise UserError(f"bundled:film-reviews: option {name}={value!r} is not {what}")


def _text(response: str | list[dict[str, str]]) -> str:
    return response if isinstance(response, str) else response[-1]["content"]


def _words(response: str | list[dict[str, str]]) -> int:
    return len(_text(response).split())
