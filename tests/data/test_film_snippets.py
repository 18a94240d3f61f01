"""The rated sentences: repairs of the text, what is left out, ratings, and the split."""

import statistics
from collections import Counter

import pytest

from tokenq.data.film_snippets import SPLITS, Snippet, SnippetTable, clean


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("the mindset of all comics    even those", "The mindset of all comics – even those"),
        ("our heroes   insecure, and intense.", "Our heroes – insecure, and intense."),
        ("an institution  acted by them.", "An institution acted by them."),
        ("''Extreme Ops'' exceeds.", '"Extreme Ops" exceeds.'),
        ("a `direct to video' release", "A 'direct to video' release"),
        ("Lovely &amp; Amazing", "Lovely & Amazing"),
        ("Italian , Chinese , Irish", "Italian, Chinese, Irish"),
        ("Lil Bow Wow ... tones down", "Lil Bow Wow ... tones down"),
        ("... always remains moving.", "Always remains moving."),
        ("...a roller coaster ride", "A roller coaster ride"),
        ("''It's all about the image.''", "It's all about the image."),
        ("'Easily one of the year's best films.'", "Easily one of the year's best films."),
        (
            "''Cremaster 3'' should say ''For buffs only!''",
            '"Cremaster 3" should say "For buffs only!"',
        ),
        ("'They' begins and ends with 'scenes'", "'They' begins and ends with 'scenes'"),
        ("A clean sentence.", "A clean sentence."),
    ],
)
def test_cleaning(raw: str, cleaned: str) -> None:
    assert clean(raw) == cleaned
    assert clean(cleaned) == cleaned


def test_counts(film_snippets: SnippetTable) -> None:
    assert film_snippets.dropped == {
        "fewer than 4 words": 177,
        "masked word": 7,
        "repeated text": 1,
    }
    assert len(film_snippets.kept) + sum(film_snippets.dropped.values()) == 10_605


def test_texts_are_whole_and_different(film_snippets: SnippetTable) -> None:
    texts = [snippet.text for snippet in film_snippets.kept]
    assert len(set(texts)) == len(texts)
    for text in texts:
        assert text == text.strip()
        assert not any(broken in text for broken in ("  ", "''", "`", "&amp;", "\ufffd", "\t"))
        assert len(text.split()) >= 4
        assert not text[0].islower()


def test_ratings_belong_to_their_text(film_snippets: SnippetTable) -> None:
    by_text = {snippet.text: snippet for snippet in film_snippets.kept}
    tepid = by_text["Effective but too tepid biopic"]
    assert tepid.ratings == (-1, 0, -1, 0, -1, -1, -1, -1, 0, -2, 1, 1, -1, -1, -1)
    assert tepid.mean == pytest.approx(-0.6)
    assert tepid.sd == pytest.approx(0.8)
    for snippet in film_snippets.kept:
        assert 15 <= len(snippet.ratings) <= 29
        assert snippet.mean == pytest.approx(statistics.fmean(snippet.ratings))


def test_split_shares_and_stability(film_snippets: SnippetTable) -> None:
    counts = Counter(snippet.split for snippet in film_snippets.kept)
    total = len(film_snippets.kept)
    for split, share in zip(SPLITS, (0.8, 0.1, 0.1), strict=True):
        assert counts[split] / total == pytest.approx(share, abs=0.01)
    # Written down once: a later version must not move texts between training and test.
    tested = [s.number for s in film_snippets.kept if s.split == "test" and s.number <= 100]
    assert tested == [44, 61, 79]


def test_split_ignores_spelling_of_marks() -> None:
    splits = {
        Snippet(1, text, 0.0, 0.0, (0,)).split
        for text in ("It's well made – truly.", "its well-made, truly!", "ITS WELL MADE TRULY")
    }
    assert len(splits) == 1
