"""Preference pairs of film sentences: who is chosen, noise, splits, lengths, options."""

import dataclasses
from collections import Counter

import datasets
import pytest

from tokenq.data import film_reviews
from tokenq.data.film_reviews import PairOptions, load, parse_options
from tokenq.data.film_snippets import SPLITS, Snippet, SnippetTable
from tokenq.errors import UserError

pytestmark = pytest.mark.usefixtures("film_snippets")

TEXT = PairOptions(format="text")


@pytest.fixture
def by_text(film_snippets: SnippetTable) -> dict[str, Snippet]:
    return {snippet.text: snippet for snippet in film_snippets.kept}


def texts(pairs: datasets.Dataset) -> list[str]:
    return [*pairs["chosen"], *pairs["rejected"]]


def flipped(pairs: datasets.Dataset) -> float:
    both = zip(pairs["chosen_rating"], pairs["rejected_rating"], strict=True)
    return sum(chosen < rejected for chosen, rejected in both) / len(pairs)


@pytest.mark.parametrize("gap", [0.2, 1.0, 3.0])
def test_chosen_is_rated_higher_by_the_gap(gap: float, by_text: dict[str, Snippet]) -> None:
    pairs = load("validation", PairOptions(gap=gap, format="text"))
    assert len(pairs) > 300
    for row in pairs:
        assert row["chosen_rating"] - row["rejected_rating"] >= gap
        assert row["chosen_rating"] == by_text[row["chosen"]].mean
        assert row["rejected_rating"] == by_text[row["rejected"]].mean


def test_pairs_of_given_texts_are_those_of_their_split(film_snippets: SnippetTable) -> None:
    own = [snippet for snippet in film_snippets.kept if snippet.split == "test"]
    found = film_reviews.pairs_of(own)
    assert {(better.text, worse.text) for better, worse in found} == {
        (row["chosen"].strip(), row["rejected"].strip()) for row in load("test", TEXT)
    }
    assert found == film_reviews.pairs_of(own)
    assert film_reviews.pairs_of(own[:1]) == []


def test_no_text_is_in_two_splits() -> None:
    seen = Counter(text for split in SPLITS for text in set(texts(load(split, TEXT))))
    assert max(seen.values()) == 1


@pytest.mark.parametrize("uses", [1, 3])
def test_uses_bounds_how_often_a_text_appears(uses: int) -> None:
    pairs = load("test", PairOptions(uses=uses, format="text"))
    assert max(Counter(texts(pairs)).values()) == uses
    sides = zip(pairs["chosen"], pairs["rejected"], strict=True)
    assert max(Counter(frozenset(pair) for pair in sides).values()) == 1
    assert len(pairs) > 0.95 * uses * 1066 / 2


def test_length_is_no_shortcut() -> None:
    pairs = load("train", TEXT)
    for row in pairs:
        shorter, longer = sorted((len(row["chosen"].split()), len(row["rejected"].split())))
        assert longer <= 1.1 * shorter + 1e-9
    assert film_reviews.longer_wins(pairs, lambda text: len(text.split())) == pytest.approx(
        0.5, abs=0.02
    )
    assert abs(film_reviews.length_correlation(pairs)) < 0.05
    assert 0.5 < film_reviews.longer_wins(pairs) < 0.6


def test_length_measures_by_hand() -> None:
    pairs = datasets.Dataset.from_list(
        [
            {"chosen": "a b c", "rejected": "d", "chosen_rating": 2.0, "rejected_rating": 1.0},
            {"chosen": "e", "rejected": "f g", "chosen_rating": 3.0, "rejected_rating": 1.0},
            {"chosen": "h", "rejected": "i", "chosen_rating": 0.5, "rejected_rating": -1.5},
        ]
    )
    assert film_reviews.longer_wins(pairs) == 0.5  # one won, one lost, one tie
    # lengths 2, -1, 0; ratings 1, 2, 2: the products cancel
    assert film_reviews.length_correlation(pairs) == 0.0
    assert film_reviews.length_correlation(pairs.select([0])) == 1.0
    assert film_reviews.length_correlation(pairs.select([1])) == -1.0


def test_unmatched_lengths_on_request() -> None:
    pairs = load("train", PairOptions(length_tolerance=10, format="text"))
    both = zip(pairs["chosen"], pairs["rejected"], strict=True)
    differences = [abs(len(one.split()) - len(other.split())) for one, other in both]
    assert sum(differences) / len(differences) > 5


def test_single_raters_disagree_more_often_on_closer_pairs() -> None:
    wide, close = (
        flipped(load("train", PairOptions(raters="single", gap=gap, format="text")))
        for gap in (1.0, 0.2)
    )
    assert 0.01 < wide < 0.05
    assert 0.05 < close < 0.15


def test_single_raters_match_the_rate_that_their_ratings_imply(
    by_text: dict[str, Snippet],
) -> None:
    """The share of wrong labels against the exact probability that two raters disagree."""
    clean = load("train", PairOptions(gap=0.2, format="text"))
    wrong = ties = 0.0
    for row in clean:
        chosen, rejected = by_text[row["chosen"]].ratings, by_text[row["rejected"]].ratings
        draws = [(one > other) - (one < other) for one in chosen for other in rejected]
        wrong += draws.count(-1) / len(draws)
        ties += draws.count(0) / len(draws)
    noisy = load("train", PairOptions(gap=0.2, raters="single", format="text"))
    assert flipped(noisy) == pytest.approx(wrong / (len(clean) - ties), abs=0.02)
    assert len(noisy) == pytest.approx(len(clean) - ties, rel=0.03)


def test_seed_decides_everything_but_the_split() -> None:
    assert load("test", TEXT).to_list() == load("test", TEXT).to_list()
    other = load("test", dataclasses.replace(TEXT, seed=1))
    assert other.to_list() != load("test", TEXT).to_list()
    assert set(texts(other)) & set(texts(load("train", TEXT))) == set()


def test_number_of_pairs() -> None:
    few = load("test", PairOptions(pairs=7, format="text"))
    assert few.to_list() == load("test", TEXT).to_list()[:7]
    with pytest.raises(UserError, match="raise uses or lower gap"):
        load("test", PairOptions(pairs=100_000))


def test_chat_and_text_hold_the_same() -> None:
    for chat, text in zip(load("test"), load("test", TEXT), strict=True):
        (prompt,), (chosen,), (rejected,) = chat["prompt"], chat["chosen"], chat["rejected"]
        assert [m["role"] for m in (prompt, chosen, rejected)] == ["user", "assistant", "assistant"]
        assert prompt["content"] in film_reviews.INSTRUCTIONS
        assert text["prompt"] == prompt["content"] + "\n\n"
        assert (text["chosen"], text["rejected"]) == (chosen["content"], rejected["content"])


def test_the_data_set_says_where_it_comes_from() -> None:
    description = load("test").info.description
    assert "MIT" in description
    assert "Hutto" in description


def test_options_from_a_query() -> None:
    assert parse_options("") == PairOptions()
    parsed = parse_options("gap=1.5&raters=single&seed=3&pairs=20&uses=2&format=text")
    assert parsed == PairOptions(1.5, "single", 3, 20, 2, 0.1, "text")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("gapp=1", "no option 'gapp'; it accepts gap, raters, seed, pairs, uses"),
        ("gap=1&gap=2", "twice"),
        ("gap=wide", "gap='wide' is not a valid float"),
        ("gap=0", "gap=0.0 is not a number above 0"),
        ("gap=nan", "gap=nan is not"),
        ("raters=all", "raters='all' is not mean or single"),
        ("seed=1.5", "seed='1.5' is not a valid int"),
        ("pairs=0", "pairs=0 is not"),
        ("uses=-1", "uses=-1 is not"),
        ("length_tolerance=inf", "length_tolerance=inf is not"),
        ("format=xml", "format='xml' is not chat or text"),
        ("gap=", "gap='' is not a valid float"),
        ("gap", "gap='' is not a valid float"),
    ],
)
def test_bad_options(query: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_options(query)


def test_unknown_split() -> None:
    with pytest.raises(UserError, match="train, validation, test"):
        load("dev")
