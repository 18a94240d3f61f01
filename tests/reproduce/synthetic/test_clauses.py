"""The clause language: quality by hand, formats, and what the writers write."""

import random
from statistics import fmean

import pytest

from tokenq.reproduce.synthetic import clauses
from tokenq.reproduce.synthetic.clauses import (
    ADVERB,
    BOS,
    EOS,
    INVERTED,
    NOUN,
    PLAIN,
    SLASH,
    STOP,
    TOPIC,
    VERB,
    Writer,
    parse,
    quality,
)

PROMPT = [BOS, TOPIC + 0, TOPIC + 2]
GOOD = [NOUN + 1, VERB + 3, ADVERB + 0, STOP]  # topic 0, both odd, warm
ALSO_GOOD = [NOUN + 8, VERB + 2, ADVERB + 3, STOP]  # topic 2, both even, warm
OFF_TOPIC = [NOUN + 5, VERB + 3, ADVERB + 0, STOP]  # topic 1
PLAIN_TONE = [NOUN + 1, VERB + 2, ADVERB + 1, STOP]  # disagrees, plain


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ([*GOOD, EOS], 1.0),
        ([*GOOD, *ALSO_GOOD, EOS], 1.0),
        ([*OFF_TOPIC, EOS], 2 / 3),
        ([*PLAIN_TONE, EOS], (1 + 0 + 0.5) / 3),
        ([*GOOD, *OFF_TOPIC, EOS], 5 / 6),
        ([*GOOD, *GOOD, EOS], 0.5),  # a repeated clause is worth nothing
        ([*GOOD, STOP, STOP, STOP, STOP, EOS], 0.5),  # nor is what is no clause
        ([NOUN, *GOOD, EOS], 4 / 5),
        ([*GOOD, NOUN + 1, VERB + 3], 4 / 6),  # cut off
        ([*GOOD, EOS, *OFF_TOPIC], 1.0),  # nothing counts after EOS
        ([EOS], 0.0),
        ([], 0.0),
    ],
)
def test_quality_by_hand(response: list[int], expected: float) -> None:
    assert quality(PROMPT, response) == pytest.approx(expected)


def test_quality_reads_its_own_format_only() -> None:
    inverted = [ADVERB + 0, NOUN + 1, VERB + 3, SLASH, EOS]
    assert quality(PROMPT, inverted, INVERTED) == 1.0
    assert quality(PROMPT, inverted, PLAIN) == 0.0
    assert quality(PROMPT, [*GOOD, EOS], INVERTED) == 0.0


def test_a_text_tells_what_is_wrong_with_it() -> None:
    text = parse([*GOOD, *GOOD, STOP, STOP, *OFF_TOPIC, EOS])
    assert (text.length, text.ended) == (14, True)
    assert text.malformed == pytest.approx(2 / 14)
    assert text.repeated == pytest.approx(1 / 3)
    assert not parse(GOOD).ended


def test_prompts_name_two_different_topics() -> None:
    for prompt in clauses.prompts(50, random.Random(0)):
        topics = clauses.topics_of(prompt)
        assert clauses.prompt_of(topics) == prompt
        assert len(set(topics)) == 2
        assert set(topics) <= set(range(clauses.TOPICS))


def written(writer: Writer, count: int = 400) -> tuple[list[list[int]], list[list[int]]]:
    draw = random.Random(1)
    prompts = clauses.prompts(count, draw)
    return prompts, [writer.write(prompt, draw) for prompt in prompts]


@pytest.mark.parametrize("form", [PLAIN, INVERTED])
def test_a_perfect_writer_writes_perfect_clauses(form: clauses.Format) -> None:
    for prompt, ids in zip(*written(Writer(1.0, 1.0, form)), strict=True):
        text = parse(ids, form)
        assert text.ended
        assert text.malformed == 0
        assert all(clause.quality(clauses.topics_of(prompt)) == 1 for clause in text.clauses)


def test_skill_raises_quality_and_leaves_length_alone() -> None:
    outcomes = {}
    for skill in (0.0, 0.5, 1.0):
        prompts, texts = written(Writer(skill, skill))
        outcomes[skill] = (
            fmean(map(quality, prompts, texts)),
            fmean(parse(ids).length for ids in texts),
        )
    assert outcomes[0.0][0] < outcomes[0.5][0] - 0.1
    assert outcomes[0.5][0] < outcomes[1.0][0] - 0.1
    assert outcomes[0.0][1] == pytest.approx(outcomes[1.0][1], rel=0.15)


def test_all_tokens_lie_in_the_vocabulary() -> None:
    _, texts = written(Writer(0.0, 1.0))
    assert max(map(max, texts)) < clauses.VOCABULARY
    assert all(ids.count(EOS) == 1 for ids in texts)
