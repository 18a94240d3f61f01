"""What a word is worth to the trained model, held against what people say it is worth.

The valences are those of the lexicon: ten people rated each word by itself. Training never sees
them: it sees which of two whole sentences is the better one.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats

from tokenq.credit.aggregation import sum_over_spans, word_spans

REWARD = "implicit reward"
CONTROLS = (
    "policy log-prob",
    "reference log-prob",
    "response's mean reward",
    "word length",
    "word frequency (log)",
    "position in response",
    "log-odds in training pairs",
)
SIGNALS = (REWARD, *CONTROLS)
"""What is computed at each place of a word.

implicit reward:            sum over the word's tokens, beta times nats
policy log-prob:            sum over the word's tokens, nats; the reference is the untrained model
response's mean reward:     of all tokens of the response: what the word would be worth if the
                            response's reward were spread evenly
word length:                characters
word frequency (log):       log(1 + places in the texts of the training split)
position in response:       share of the characters before it
log-odds in training pairs: see :func:`log_odds`
"""
_RESAMPLES = 1000
_LEVEL = 95


@dataclass(frozen=True)
class Occurrence:
    """A word of the lexicon in a response (by number), with the value of each of `SIGNALS`."""

    word: str
    response: int
    signals: tuple[float, ...]


@dataclass(frozen=True)
class WordScore:
    """A word's human valence (-4..4) and its signals, mean over `count` occurrences."""

    word: str
    valence: float
    count: int
    in_training: bool
    signals: dict[str, float]


@dataclass(frozen=True)
class Correlation:
    """Spearman's rho with the valence, None for a signal that does not vary; 95 % intervals by
    bootstrap over words (of this vocabulary) and over responses (as if others had been written)."""

    rho: float | None
    over_words: tuple[float, float] | None
    over_responses: tuple[float, float] | None


@dataclass(frozen=True)
class Agreement:
    """How signals of words agree with their valence. `not_beaten`: controls whose rho is at least
    as far from 0 as that of the implicit reward."""

    words: int
    occurrences: int
    min_occurrences: int
    spearman: dict[str, Correlation]
    not_beaten: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return asdict(self)


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return [text[start:end].lower() for start, end in word_spans(text)]


def log_odds(chosen: Iterable[str], rejected: Iterable[str]) -> dict[str, float]:
    """log p(word | chosen) - log p(word | rejected), with one added to each count.

    The weights of a naive Bayes classifier: what the same pairs teach without a language model.
    """
    liked, blamed = (
        Counter(word for text in side for word in words_of(text)) for side in (chosen, rejected)
    )
    vocabulary = liked.keys() | blamed.keys()
    totals = liked.total() + len(vocabulary), blamed.total() + len(vocabulary)
    return {
        word: math.log((liked[word] + 1) / totals[0]) - math.log((blamed[word] + 1) / totals[1])
        for word in vocabulary
    }


def occurrences(
    sides: Iterable[Mapping[str, Any]],
    lexicon: Mapping[str, Any],
    frequency: Mapping[str, int],
    odds: Mapping[str, float],
) -> list[Occurrence]:
    """Every word of `lexicon` in the responses `sides` (`Credit.response_record`).

    frequency: how often a word is in the texts that training pairs are drawn from
    odds:      :func:`log_odds`; 0 for words that the pairs lack
    """
    found = []
    for number, side in enumerate(sides):
        text = side["response"]
        spans = word_spans(text)
        summed = [
            sum_over_spans(torch.tensor(side[name]), side["offsets"], text, spans).tolist()
            for name in ("rewards", "logps", "ref_logps")
        ]
        spread = sum(side["rewards"]) / len(side["rewards"])
        for (start, end), reward, logp, ref_logp in zip(spans, *summed, strict=True):
            word = text[start:end].lower()
            if word not in lexicon:
                continue
            values = (
                reward,
                logp,
                ref_logp,
                spread,
                float(len(word)),
                math.log1p(frequency.get(word, 0)),
                start / len(text),
                odds.get(word, 0.0),
            )
            found.append(Occurrence(word, number, values))
    return found


def score_words(
    found: Sequence[Occurrence], valence: Mapping[str, float], trained_on: Iterable[str]
) -> list[WordScore]:
    """One line for each word, the most liked first."""
    grouped: dict[str, list[Occurrence]] = {}
    for each in found:
        grouped.setdefault(each.word, []).append(each)
    seen = set(trained_on)
    scores = []
    for word, places in grouped.items():
        means = np.mean([each.signals for each in places], axis=0).tolist()
        signals = dict(zip(SIGNALS, means, strict=True))
        scores.append(WordScore(word, valence[word], len(places), word in seen, signals))
    return sorted(scores, key=lambda each: -each.signals[REWARD])


def agreement(
    found: Sequence[Occurrence],
    valence: Mapping[str, float],
    *,
    min_occurrences: int = 1,
    without: Iterable[str] = (),
    seed: int = 0,
) -> Agreement:
    """Correlate each word's mean signals with its valence.

    min_occurrences: leave out words that occur less often
    without:         leave out these words
    seed:            of the bootstrap

    Raises ValueError if fewer than three words are left.
    """
    counts = Counter(each.word for each in found)
    left_out = set(without)
    kept = [
        each for each in found if counts[each.word] >= min_occurrences and each.word not in left_out
    ]
    vocabulary = sorted({each.word for each in kept})
    if len(vocabulary) < 3:
        raise ValueError(f"{len(vocabulary)} words to correlate; three are needed")
    place = {word: number for number, word in enumerate(vocabulary)}
    sample = _Sample(
        words=np.array([place[each.word] for each in kept]),
        responses=np.unique([each.response for each in kept], return_inverse=True)[1],
        signals=np.array([each.signals for each in kept]),
        valence=np.array([valence[word] for word in vocabulary]),
    )
    rho = sample.correlations(np.ones(len(kept)))
    draw = np.random.default_rng(seed)
    over_words = _interval([sample.resampled_words(draw) for _ in range(_RESAMPLES)])
    over_responses = _interval([sample.resampled_responses(draw) for _ in range(_RESAMPLES)])
    spearman = {
        name: Correlation(_number(rho[i]), over_words[i], over_responses[i])
        for i, name in enumerate(SIGNALS)
    }
    own = abs(rho[0])
    strong = tuple(name for name, value in zip(CONTROLS, rho[1:], strict=True) if abs(value) >= own)
    return Agreement(len(vocabulary), len(kept), min_occurrences, spearman, strong)


@dataclass(frozen=True)
class _Sample:
    """words, responses: [n] number of each occurrence's word and response; signals: [n, S];
    valence: [W]."""

    words: np.ndarray
    responses: np.ndarray
    signals: np.ndarray
    valence: np.ndarray

    def correlations(self, weights: np.ndarray) -> np.ndarray:
        """[S] rho of the words' weighted mean signals; words of weight 0 are not there."""
        means, there = self._means(weights)
        return _spearman(means[there], self.valence[there])

    def resampled_words(self, draw: np.random.Generator) -> np.ndarray:
        means, _ = self._means(np.ones(len(self.words)))
        chosen = draw.integers(len(means), size=len(means))
        return _spearman(means[chosen], self.valence[chosen])

    def resampled_responses(self, draw: np.random.Generator) -> np.ndarray:
        count = int(self.responses.max()) + 1
        times = np.bincount(draw.integers(count, size=count), minlength=count)
        return self.correlations(times[self.responses].astype(float))

    def _means(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        size = len(self.valence)
        total = np.bincount(self.words, weights, minlength=size)
        there = total > 0
        sums = [
            np.bincount(self.words, weights * column, minlength=size) for column in self.signals.T
        ]
        return np.stack(sums, axis=1) / np.where(there, total, 1)[:, None], there


def _spearman(values: np.ndarray, target: np.ndarray) -> np.ndarray:
    """[S] rank correlation of each column of `values` [W, S] with `target`; NaN if one is flat."""
    ranks = stats.rankdata(values, axis=0)
    ranks -= ranks.mean(axis=0)
    goal = stats.rankdata(target)
    goal -= goal.mean()
    scale = np.sqrt((ranks**2).sum(axis=0) * (goal**2).sum())
    with np.errstate(invalid="ignore"):
        return np.where(scale > 0, (goal @ ranks) / scale, np.nan)


def _interval(drawn: list[np.ndarray]) -> list[tuple[float, float] | None]:
    """Percentile interval of each column; None where a draw had no correlation."""
    table = np.stack(drawn)
    tail = (100 - _LEVEL) / 2
    low, high = np.percentile(table, (tail, 100 - tail), axis=0)
    return [
        None if math.isnan(one) else (float(one), float(other))
        for one, other in zip(low, high, strict=True)
    ]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
