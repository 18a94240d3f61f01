"""Credit summed over words, sentences, steps and turns, for tokenizers of every family."""

import functools
from collections import defaultdict
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from small_pairs import small_pair
from tokenizer_families import BACKENDS, TEMPLATES
from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerFast
from uniseg.graphemecluster import grapheme_clusters
from uniseg.wordbreak import word_boundaries

import tokenq
from tokenq.credit import Credit, Span, sentence_units, word_units
from tokenq.credit.aggregation import Shares
from tokenq.credit.answers import read_answer
from tokenq.credit.estimators import ESTIMATORS
from tokenq.data.steps import compile_step_pattern, step_numbers, step_starts
from tokenq.data.turns import OTHERS
from tokenq.errors import UserError

FAMILY = "👩\u200d👩\u200d👧"
ACUTE = "e\u0301"
PIECES = st.sampled_from(
    [
        *["the", " cat", "sat.", " ", "\n", "\n\n", "\t", "  ", "é", ACUTE, "😀", FAMILY, "🇫🇷"],
        *["👍🏽", "日本", "語。", "カタ", "हिन्दी", "한국", "ภาษา", ".", "! ", '"', "'a", "3.14"],
        *["1,000", "\u200b", "\u202f", "Dr. X"],
    ]
)
TEXT = st.lists(PIECES, min_size=1, max_size=12).map("".join)
ANY = st.one_of(TEXT, st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20))
quick = settings(max_examples=60, deadline=None)


@functools.cache
def tokenizer_of(backend: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=BACKENDS[backend](), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def credit_of(backend: str, response: str, prompt: str = "Say:") -> Credit:
    """A credit with random log-probs, which no unit can sum up by accident."""
    answer = read_answer(tokenizer_of(backend), prompt, response)
    ids = answer.encoded.response_ids
    generator = torch.Generator().manual_seed(len(response))
    logps, ref_logps = torch.randn(2, len(ids), generator=generator)
    return Credit(
        prompt=prompt, response=answer.text, beta=0.5, token_ids=tuple(ids),
        tokens=("",) * len(ids), offsets=tuple(answer.encoded.offsets), logps=logps,
        ref_logps=ref_logps, policy_name="p", reference_name="r",
    )  # fmt: skip


def total(spans: list[Span]) -> float:
    return sum(span.reward for span in spans)


# --- where words and sentences end


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's 3.14 or 1,000!", ["It's", " 3.14", " or", " 1,000", "!"]),
        ("re-use snake_case", ["re", "-", "use", " snake_case"]),
        (f"caf{ACUTE} na\u0131\u0308ve", [f"caf{ACUTE}", " na\u0131\u0308ve"]),
        (f"{FAMILY}👍🏽 🇫🇷🇩🇪", [FAMILY, "👍🏽", " 🇫🇷", "🇩🇪"]),
        ("日本テスト。", ["日", "本", "テスト", "。"]),
        ("한국 말", ["한국", " 말"]),
        ("one \n\n  two  ", ["one", " \n\n", "  two  "]),
        ("\r\nx", ["\r\n", "x"]),
        ("  ", ["  "]),
        ("10\u202f000 m", ["10\u202f000", " m"]),
        ("", []),
    ],
)
def test_word_units_by_hand(text: str, words: list[str]) -> None:
    assert [text[a:b] for a, b in word_units(text)] == words


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Dr. Smith paid $3.50. Was it much?", ["Dr. Smith paid $3.50. ", "Was it much?"]),
        ("これは文です。次の文！はい", ["これは文です。", "次の文！", "はい"]),
        (f"{FAMILY} came. {ACUTE}t puis?", [f"{FAMILY} came. ", f"{ACUTE}t puis?"]),
        ("One.\n\nTwo.", ["One.", "\n\n", "Two."]),
    ],
)
def test_sentence_units_by_hand(text: str, sentences: list[str]) -> None:
    assert [text[a:b] for a, b in sentence_units(text)] == sentences


@quick
@given(ANY)
def test_units_part_the_text_and_cut_no_grapheme(text: str) -> None:
    ends, at = set(), 0
    for cluster in grapheme_clusters(text):
        at += len(cluster)
        ends.add(at)
    units = word_units(text)
    assert "".join(text[a:b] for a, b in units) == text
    assert all(a < b for a, b in units)
    assert all(before[1] == after[0] for before, after in pairwise(units))
    assert {b for _, b in units} <= ends
    assert "".join(text[a:b] for a, b in sentence_units(text)) == text


@quick
@given(TEXT)
def test_words_end_where_unicode_ends_them_but_for_blanks(text: str) -> None:
    """Reading what stands between blanks alone, as is done to remember it, changes nothing."""
    inner = {
        at
        for at in word_boundaries(text)
        if 0 < at < len(text) and not text[at - 1].isspace() and not text[at].isspace()
    }
    ours = {
        end
        for _, end in word_units(text)
        if end < len(text) and not text[end - 1].isspace() and not text[end].isspace()
    }
    assert ours == inner


# --- tokens divided among units


def covered_by_bytes(credit: Credit, backend: str) -> list[list[int]]:
    """The characters of the response whose bytes each token holds, from the tokens themselves."""
    tokenizer = tokenizer_of(backend)
    place = [i for i, character in enumerate(credit.response) for _ in character.encode()]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = tokenizer.convert_ids_to_tokens(list(credit.token_ids[:-1]))
    if backend == "llama_like":
        sizes = [
            1 if name.startswith("<0x") else len(name.replace("▁", " ").encode()) for name in names
        ]
    else:
        assert all(character in alphabet for name in names for character in name)
        sizes = [len(name) for name in names]
    # What the first token holds of the prompt, the blank that its tokenizer adds for instance.
    at = len(place) - sum(sizes)
    found = []
    for size in sizes:
        found.append(sorted(set(place[max(at, 0) : max(at + size, 0)])))
        at += size
    assert at == len(place)
    return [*found, []]


@quick
@given(ANY)
@pytest.mark.parametrize(
    "backend", ["byte_level", "byte_level_trimmed", "blank_after_word", "llama_like"]
)
def test_word_sums_equal_those_over_the_bytes_of_tokens(backend: str, response: str) -> None:
    credit = credit_of(backend, response)
    expected: dict[int, Fraction] = defaultdict(Fraction)
    owner = [unit for unit, (a, b) in enumerate(word_units(response)) for _ in range(a, b)]
    for reward, places in zip(
        credit.rewards.tolist(), covered_by_bytes(credit, backend), strict=True
    ):
        counted = [at for at in places if not response[at].isspace()] or places
        for at in counted:
            expected[owner[at]] += Fraction(reward) / len(counted)
    spans = [span for span in credit.words() if span.text]
    found = [span.reward for span in sorted(spans, key=lambda span: span.start)]
    sums = [float(expected[unit]) for unit in sorted(expected)]
    assert found == pytest.approx(sums, abs=1e-6)


@quick
@given(ANY)
@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_parts_add_up_and_lie_where_their_text_is(backend: str, response: str) -> None:
    dropped = not tokenizer_of(backend)(response, add_special_tokens=False)["input_ids"]
    assume(not dropped)
    credit = credit_of(backend, response)
    whole = float(credit.rewards.double().sum())
    for spans in (credit.words(), credit.sentences(), credit.steps(), credit.turns()):
        assert total(spans) == pytest.approx(whole, abs=1e-5)
        for span in spans:
            assert span.text == response[span.start : span.end]
            assert 0 <= span.first < span.last <= len(credit)
    units = {response[a:b].strip() for a, b in word_units(response)}
    assert {span.text for span in credit.words() if span.text.strip()} <= units
    end = credit.words()[-1]
    assert (end.text, end.last) == ("", len(credit))
    assert end.reward == pytest.approx(float(credit.rewards[end.first :].sum()), abs=1e-6)


KNOWN = st.lists(
    st.sampled_from(
        ["the", " cat", " sat", " 日本語", " naïve", " café", " Paris", ".", "?", " and the mat"]
    ),
    min_size=1,
    max_size=10,
).map("".join)


@quick
@given(KNOWN)
@pytest.mark.parametrize("backend", ["unigram", "wordpiece"])
def test_word_sums_equal_those_over_the_pieces_of_tokens(backend: str, response: str) -> None:
    """Text of which the tokenizer knows every character: the pieces say which ones they hold."""
    credit = credit_of(backend, response)
    names = tokenizer_of(backend).convert_ids_to_tokens(list(credit.token_ids[:-1]))
    assert "<unk>" not in names
    visible = [at for at, character in enumerate(response) if not character.isspace()]
    owner = [unit for unit, (a, b) in enumerate(word_units(response)) for _ in range(a, b)]
    expected: dict[int, float] = defaultdict(float)
    for name, reward in zip(names, credit.rewards.tolist(), strict=False):
        size = len(name.removeprefix("▁").removeprefix("##"))
        held, visible = visible[:size], visible[size:]
        # A blank by itself belongs to the word that follows.
        for at in held or visible[:1]:
            expected[owner[at]] += reward / max(size, 1)
    assert not visible
    found = [span.reward for span in credit.words() if span.text]
    assert found == pytest.approx([expected[unit] for unit in sorted(expected)], abs=1e-6)


def test_words_by_hand() -> None:
    credit = credit_of("byte_level", "ok ")
    offsets = ((0, 1), (1, 6), (6, 8), (7, 9), (9, 9))
    logps = torch.tensor([2.0, 4.0, 8.0, 16.0, 32.0])
    fields = {**vars(credit), "tokens": ("",) * 5, "token_ids": (1,) * 5, "offsets": offsets}
    fields |= {"response": "a big.\n😀.", "logps": logps, "ref_logps": logps * 0, "beta": 1.0}
    found = Credit(**fields).words()
    # The token at 1:6 is " big." of which one character in four is the stop; the line end and the
    # emoji share a token, of which only the emoji can be seen.
    assert [(span.text, span.first, span.last, span.reward) for span in found] == [
        ("a", 0, 1, 2.0),
        ("big", 1, 2, 3.0),
        (".", 1, 2, 1.0),
        ("😀", 2, 4, 16.0),
        (".", 3, 4, 8.0),
        ("", 4, 5, 32.0),
    ]


def test_what_is_summed_can_be_given() -> None:
    credit = credit_of("byte_level", "the cat sat")
    ones = torch.ones(len(credit))
    assert total(credit.words(ones)) == pytest.approx(len(credit))
    assert total(credit.steps(values=ones)) == len(credit)
    with pytest.raises(ValueError, match=r"values of shape \(2,\)"):
        credit.words(torch.ones(2))


def test_units_with_gaps_are_refused() -> None:
    with pytest.raises(ValueError, match="units hold 2 characters of a text of 3"):
        Shares.of([(0, 3)], "abc", [(0, 1), (2, 3)])


# --- steps and turns


@pytest.mark.parametrize("pattern", ["lines", "paragraphs", "numbered"])
def test_steps_are_numbered_as_training_numbers_them(pattern: str) -> None:
    text = "Step 1: add.\nSo 2 + 3 = 5.\n\nStep 2: double it.\n10\n"
    credit = credit_of("byte_level", text)
    starts = step_starts(text, compile_step_pattern(pattern))
    numbers = torch.tensor(step_numbers(credit.offsets, starts))
    spans = credit.steps(pattern)
    assert len(spans) == int(numbers.max()) + 1 > 1
    for number, span in enumerate(spans):
        assert span.reward == pytest.approx(float(credit.rewards[numbers == number].sum()))
        assert text[starts[number] :].startswith(span.text)
    assert spans[-1].last == len(credit)


def test_an_unknown_step_pattern_is_refused() -> None:
    with pytest.raises(UserError, match="step_pattern is '\\('"):
        credit_of("byte_level", "the cat").steps("(")


QUESTION = [{"role": "user", "content": "film?"}]
TURNS = [
    {"role": "assistant", "content": "A warm film."},
    {"role": "user", "content": "and?"},
    {"role": "assistant", "content": " A dull mess é😀"},
]


def test_each_turn_has_the_credit_of_a_row_of_its_own() -> None:
    pair = small_pair()
    credit = tokenq.credit(pair, QUESTION, TURNS, beta=0.3)
    first, second = credit.turns()
    alone = [
        tokenq.credit(pair, QUESTION, TURNS[:1], beta=0.3),
        tokenq.credit(pair, [*QUESTION, *TURNS[:2]], TURNS[2:], beta=0.3),
    ]
    for turn, row in zip((first, second), alone, strict=True):
        assert credit.token_ids[turn.first : turn.last] == row.token_ids
        rewards = credit.rewards[turn.first : turn.last]
        torch.testing.assert_close(rewards, row.rewards, atol=1e-5, rtol=0)
    between = credit.rewards[first.last : second.first]
    assert len(between) > 4
    assert not between.any()
    assert credit.reward == pytest.approx(first.reward + second.reward, abs=1e-6)
    # Of the last turn the end token lies behind the text.
    assert first.text == "A warm film.</s>"
    assert second.text == "A dull mess é😀"
    assert credit.response[: first.end] == "A warm film.</s>"
    assert credit.to_dict()["turn_numbers"] == list(credit.turn_numbers or ())


def test_an_answer_of_one_message_is_one_turn() -> None:
    credit = tokenq.credit(small_pair(), QUESTION, TURNS[:1])
    [turn] = credit.turns()
    assert (turn.first, turn.last, turn.text) == (0, len(credit), "A warm film.")
    assert turn.reward == pytest.approx(credit.reward, abs=1e-6)


def test_turns_that_cannot_be_told_are_refused() -> None:
    pair = small_pair()
    with pytest.raises(UserError, match="begins with the role 'user'; accepted: 'assistant'"):
        tokenq.credit(pair, QUESTION, TURNS[1:])
    pair.tokenizer.chat_template = TEMPLATES["no_turn_end"]
    with pytest.raises(UserError, match="does not tell the model's turns from the others'"):
        tokenq.credit(pair, QUESTION, TURNS)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_no_estimator_gives_credit_to_what_somebody_else_wrote(name: str) -> None:
    pair = small_pair()
    credit = tokenq.credit(pair, QUESTION, TURNS, beta=0.3)
    own = torch.tensor([turn != OTHERS for turn in credit.turn_numbers or ()])
    assert not own.all()
    estimate = credit.estimate(name)
    assert not estimate[~own].any()
    assert estimate[own].any()
