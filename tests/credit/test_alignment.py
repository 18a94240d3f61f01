"""Aligned answers: every character once, rewards that add up to the margin, whatever the text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_pairs import small_pair, small_tokenizer

import tokenq
from tokenq.credit.alignment import Answer, align_rewards, align_words, aligned_segments
from tokenq.credit.pairs import credit_pair
from tokenq.data.encoding import encode
from tokenq.errors import UserError

# Words, signs, blanks, joined emoji, marks, scripts without blanks.
_ATOMS = (
    "a|film| |  |\n|3.5|,|.|is|n't|é|e\u0301|日|本|は|👨\u200d👩\u200d👧|👍🏽|**|\t|\u200b|क्षि|x_y"
)
TEXTS = st.lists(st.sampled_from(_ATOMS.split("|")), max_size=24).map("".join)
TOKENIZER = small_tokenizer()


def by_characters(text: str, rewards: list[float]) -> Answer:
    """A token for each character and an end token."""
    offsets = [(at, at + 1) for at in range(len(text))] + [(len(text), len(text))]
    return Answer(text, offsets, rewards)


@settings(deadline=None)
@given(TEXTS, TEXTS)
def test_segments_cover_both_answers_and_equal_ones_are_equal(chosen: str, rejected: str) -> None:
    reached = [0, 0]
    for kind, ours, theirs in align_words(chosen, rejected):
        assert [ours[0], theirs[0]] == reached
        reached = [ours[1], theirs[1]]
        texts = chosen[slice(*ours)], rejected[slice(*theirs)]
        assert (kind == "equal") == (texts[0] == texts[1])
        assert (kind == "insert") == (not texts[1])
        assert (kind == "delete") == (not texts[0])
    assert reached == [len(chosen), len(rejected)]


@settings(deadline=None)
@given(TEXTS, TEXTS, st.data())
def test_differences_add_up_to_the_margin(chosen: str, rejected: str, data: st.DataObject) -> None:
    reward = st.floats(-5, 5, allow_subnormal=False)
    sides = [
        by_characters(
            text, data.draw(st.lists(reward, min_size=len(text) + 1, max_size=len(text) + 1))
        )
        for text in (chosen, rejected)
    ]
    segments = align_rewards(*sides)
    margin = sum(sides[0].rewards) - sum(sides[1].rewards)
    assert sum(each.difference for each in segments) == pytest.approx(margin, abs=1e-9)
    assert segments[-1].kind == "end"
    assert segments[-1].difference == pytest.approx(sides[0].rewards[-1] - sides[1].rewards[-1])


def test_a_wrong_number_is_the_segment_that_differs() -> None:
    chosen = "The fee is 250 dollars a year."
    rejected = "The fee is 2500 dollars a year."
    kinds = [(kind, chosen[slice(*c)], rejected[slice(*r)]) for kind, c, r in
             align_words(chosen, rejected)]  # fmt: skip
    assert kinds == [
        ("equal", "The fee is", "The fee is"),
        ("replace", " 250", " 2500"),
        ("equal", " dollars a year.", " dollars a year."),
    ]


def test_what_only_one_answer_says_is_an_insertion_or_a_deletion() -> None:
    assert [each[0] for each in align_words("a big old dog", "a dog")] == [
        "equal", "insert", "equal"]  # fmt: skip
    assert [each[0] for each in align_words("a dog", "a big old dog")] == [
        "equal", "delete", "equal"]  # fmt: skip


def test_words_that_two_different_answers_share_by_chance_are_no_agreement() -> None:
    found = align_words(
        "Brilliant performances carry the a deeply moving story",
        "Wooden acting sinks the a painfully tedious screenplay",
    )
    assert [kind for kind, *_ in found] == ["replace"]


def test_a_token_across_two_segments_is_divided_and_one_of_blanks_is_not_lost() -> None:
    # Hand-worked: "ab" differs from "cd" and "xy" is shared; the token "b x" of reward 3 has two
    # characters other than blanks, one on each side of the border.
    chosen = Answer("ab xy\n", [(0, 1), (1, 4), (4, 5), (5, 6), (6, 6)], [1.0, 3.0, 5.0, 7.0, 9.0])
    rejected = Answer("cd xy\n", [(0, 2), (2, 6), (6, 6)], [2.0, 4.0, 6.0])
    changed, shared, end = align_rewards(chosen, rejected)
    assert (changed.kind, shared.kind, end.kind) == ("replace", "equal", "end")
    assert (changed.chosen_reward, changed.rejected_reward) == (2.5, 2.0)
    assert (shared.chosen_reward, shared.rejected_reward) == (13.5, 4.0)
    with pytest.raises(ValueError, match="1 rewards but 2 offsets"):
        align_rewards(Answer("ab", [(0, 2), (2, 2)], [1.0]), rejected)
    assert (end.chosen_reward, end.rejected_reward) == (9.0, 6.0)


@settings(deadline=None)
@given(TEXTS, TEXTS)
def test_byte_tokens_of_a_real_tokenizer_add_up(chosen: str, rejected: str) -> None:
    sides = []
    for text in (chosen, rejected):
        if not text.strip():
            return
        encoded = encode(TOKENIZER, "Review:", text)
        rewards = [0.1 * token - 10 for token in encoded.response_ids]
        sides.append(Answer(text, encoded.offsets, rewards))
    margin = sum(sides[0].rewards) - sum(sides[1].rewards)
    assert sum(each.difference for each in align_rewards(*sides)) == pytest.approx(margin)


def test_a_pair_is_its_two_answers_and_a_saved_record_says_the_same() -> None:
    pair = small_pair()
    answers = {"chosen": " A warm, funny film 🎬.", "rejected": " A warm, dull film."}
    read = credit_pair(pair, "Review:", answers["chosen"], answers["rejected"], beta=0.3)
    alone = {name: tokenq.credit(pair, "Review:", text, 0.3) for name, text in answers.items()}
    assert read.chosen.rewards.tolist() == alone["chosen"].rewards.tolist()
    assert read.margin == pytest.approx(alone["chosen"].reward - alone["rejected"].reward)
    assert sum(each.difference for each in read.segments) == pytest.approx(read.margin, abs=1e-9)
    record = {"responses": {name: each.to_dict() for name, each in alone.items()}}
    for ours, saved in zip(read.segments, aligned_segments(record), strict=True):
        assert (ours.kind, ours.chosen, ours.rejected) == (saved.kind, saved.chosen, saved.rejected)
        assert ours.difference == pytest.approx(saved.difference, abs=1e-4)
    plain = read.to_dict(alternatives=1)
    assert plain["segments"][0]["difference"] == read.segments[0].difference
    assert plain["chosen"]["alternatives"]


def test_what_is_no_pair_is_refused() -> None:
    with pytest.raises(ValueError, match=r"responses \['completion'\] is no scored pair"):
        aligned_segments({"responses": {"completion": {}}})
    with pytest.raises(UserError, match="rejected: "):
        credit_pair(small_pair(), "Review:", " A film.", "")
