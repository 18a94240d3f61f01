"""The lexicon against the counts and entries of the published file."""

from tokenq.data.lexicon import LexiconEntry


def test_size_and_ratings(word_valence: dict[str, LexiconEntry]) -> None:
    assert len(word_valence) == 7506
    for entry in word_valence.values():
        assert len(entry.ratings) == 10
        assert all(-4 <= rating <= 4 for rating in entry.ratings)


def test_known_entries(word_valence: dict[str, LexiconEntry]) -> None:
    good = word_valence["good"]
    assert good.ratings == (2, 1, 1, 3, 2, 4, 2, 2, 1, 1)
    assert good.mean == 1.9
    assert round(good.sd, 5) == 0.9434
    assert word_valence["horrible"].mean == -2.5
    assert word_valence[":-Þ"].mean > 0  # read as UTF-8


def test_words_of_either_sign(word_valence: dict[str, LexiconEntry]) -> None:
    positive = sum(entry.mean > 0 for entry in word_valence.values())
    negative = sum(entry.mean < 0 for entry in word_valence.values())
    assert positive + negative == len(word_valence)
    assert 3000 < positive < negative
