"""Reasoning steps: where they begin, numbers of tokens, pairs from a shared beginning."""

import re

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokenq.data import add_edits, add_features, encode, prepare, share_steps
from tokenq.data.loading import Rows
from tokenq.data.steps import STEP_PATTERNS, compile_step_pattern, step_numbers, step_starts
from tokenq.errors import UserError

CHOSEN = "the cat sat\non the mat\nand the dog\n"
REJECTED = "the cat sat\non the log\nthe end\n"


def as_rows(*pairs, streaming=False):
    rows = [
        {"row": i, "prompt": "What is the capital?\n", "chosen": chosen, "rejected": rejected}
        for i, (chosen, rejected) in enumerate(pairs)
    ]
    dataset = datasets.Dataset.from_list(rows)
    return Rows(dataset.to_iterable_dataset() if streaming else dataset, "preference", "h", "f", 0)


def split(text, pattern):
    starts = step_starts(text, compile_step_pattern(pattern))
    return [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]


@pytest.mark.parametrize(
    ("pattern", "text", "steps"),
    [
        ("lines", "a b\nc\n\n d\n", ["a b\n", "c\n\n", " d\n"]),
        ("lines", "\n\na\nb", ["\n\na\n", "b"]),
        ("lines", "one", ["one"]),
        ("paragraphs", "a\nb\n\nc\n\n\nd", ["a\nb\n\n", "c\n\n\n", "d"]),
        (
            "numbered",
            "Let us see.\nStep 1: add.\nso\n**Step 2:** halve\n## step 3. Done",
            ["Let us see.\n", "Step 1: add.\nso\n", "**Step 2:** halve\n", "## step 3. Done"],
        ),
        ("numbered", "Step 1: add, as Step 2: says", ["Step 1: add, as Step 2: says"]),
        ("numbered", "\nStep 1: a\nStep 2 of them", ["\nStep 1: a\nStep 2 of them"]),
        (r"(?<=; )", "a; b; c", ["a; ", "b; ", "c"]),
        (r"<step>", "<step>a<step>b", ["<step>a", "<step>b"]),
    ],
)
def test_steps_by_hand(pattern, text, steps):
    assert split(text, pattern) == steps


@given(text=st.text(st.sampled_from("ab \n:1Step"), max_size=40))
@pytest.mark.parametrize("pattern", sorted(STEP_PATTERNS))
def test_steps_are_the_whole_text_and_none_is_blank(pattern, text):
    steps = split(text, pattern)
    assert "".join(steps) == text
    assert all(step.strip() for step in steps) or not text.strip()


def test_token_belongs_to_the_step_in_which_it_begins():
    #          prompt  "ab"    "b\nc"  "d"     EOS
    offsets = [(0, 0), (0, 2), (2, 5), (5, 6), (6, 6)]
    assert step_numbers(offsets, [0, 4]) == [0, 0, 0, 1, 1]
    # No token begins in the step 3..4, so the numbers close up.
    assert step_numbers(offsets, [0, 3, 4]) == [0, 0, 0, 1, 1]
    assert step_numbers(offsets, [0]) == [0] * 5


@pytest.mark.parametrize("backend", ["byte_level", "byte_level_trimmed", "llama_like"])
def test_numbers_of_prepared_answers(make_tokenizer, backend):
    tokenizer = make_tokenizer(backend)
    prepared = prepare(as_rows((CHOSEN, REJECTED)), tokenizer, segments="steps")
    [row] = prepared.dataset
    plain = prepare(as_rows((CHOSEN, REJECTED)), tokenizer)
    for side, text in (("chosen", CHOSEN), ("rejected", REJECTED)):
        ids, numbers = row[f"{side}_ids"], row[f"{side}_segments"]
        assert ids == plain.dataset[0][f"{side}_ids"]
        told = ["", "", ""]
        encoded = encode(tokenizer, "What is the capital?\n", text)
        for number, (first, last) in zip(numbers, encoded.offsets, strict=True):
            told[number] += text[first:last]
        assert told == text.splitlines(keepends=True)
        assert numbers[-1] == 2  # the end token
    assert "chosen_segments" not in plain.dataset.column_names
    assert prepared.fingerprint != plain.fingerprint
    other = prepare(
        as_rows((CHOSEN, REJECTED)), tokenizer, segments="steps", step_pattern="numbered"
    )
    assert set(other.dataset[0]["chosen_segments"]) == {0}
    assert other.fingerprint != prepared.fingerprint


def test_messages_and_template_text(make_tokenizer):
    tokenizer = make_tokenizer("byte_level", "trimming", eos="<|im_end|>")
    pair = {
        "row": 0,
        "prompt": [{"role": "user", "content": "What"}],
        "chosen": [{"role": "assistant", "content": "\n\n" + CHOSEN}],
        "rejected": [{"role": "assistant", "content": REJECTED}],
    }
    rows = Rows(datasets.Dataset.from_list([pair]), "preference", "h", "f", 0)
    [row] = prepare(rows, tokenizer, segments="steps").dataset
    steps = [
        tokenizer.decode(
            [i for i, n in zip(row["chosen_ids"], row["chosen_segments"], strict=True) if n == step]
        )
        for step in range(3)
    ]
    assert steps == ["the cat sat\n", "on the mat\n", "and the dog<|im_end|>"]

    pair["chosen"] += [{"role": "user", "content": "so"}, *pair["rejected"]]
    rows = Rows(datasets.Dataset.from_list([pair]), "preference", "h", "f", 0)
    with pytest.raises(UserError, match="row 0: steps are numbered in answers of one turn"):
        prepare(rows, tokenizer, segments="steps")


def test_rewritten_answers_are_dropped(make_tokenizer):
    tokenizer = make_tokenizer("byte_level", "shouting", eos="<|im_end|>")
    rows = [
        {"row": i, "prompt": [{"role": "user", "content": "Q"}],
         "completion": [{"role": "assistant", "content": text}]}
        for i, text in enumerate(["the cat", "THE CAT"])
    ]  # fmt: skip
    rows = Rows(datasets.Dataset.from_list(rows), "sft", "h", "f", 0)
    prepared = prepare(rows, tokenizer, segments="steps")
    assert prepared.report.dropped == {"steps_unknown": 1}
    assert "steps_unknown" in prepared.report.render()
    assert [row["row"] for row in prepared.dataset] == [1]


def test_unknown_pattern_is_refused(make_tokenizer):
    with pytest.raises(UserError, match=r"step_pattern is '\('.*accepted: lines, paragraphs"):
        prepare(as_rows((CHOSEN, REJECTED)), make_tokenizer("byte_level"), step_pattern="(")


def texts(tokenizer, row):
    return tuple(tokenizer.decode(row[f"{name}_ids"]) for name in ("prompt", "chosen", "rejected"))


def test_shared_steps_move_into_the_prompt(make_tokenizer):
    tokenizer = make_tokenizer("byte_level")
    prepared = prepare(as_rows((CHOSEN, REJECTED)), tokenizer, segments="steps")
    moved = share_steps(prepared)
    [row] = moved.dataset
    question = "What is the capital?\nthe cat sat\n"
    assert texts(tokenizer, row) == (
        question, "on the mat\nand the dog\n</s>", "on the log\nthe end\n</s>"
    )  # fmt: skip
    assert row["chosen_segments"][0] == 0
    assert set(row["chosen_segments"]) == {0, 1}
    step = share_steps(prepared, keep=1)
    [row] = step.dataset
    assert texts(tokenizer, row) == (question, "on the mat\n", "on the log\n")
    assert row["chosen_segments"] == [0] * len(row["chosen_ids"])
    assert len({prepared.fingerprint, moved.fingerprint, step.fingerprint}) == 3


def test_pairs_that_differ_at_once_and_at_the_last_token(make_tokenizer):
    tokenizer = make_tokenizer("byte_level")
    at_once, last = ("the cat", "on the mat"), ("the\ncat", "the\ncat\n")
    prepared = prepare(as_rows(at_once, last), tokenizer, segments="steps")
    rows = list(share_steps(prepared, keep=1).dataset)
    assert rows[0] == prepared.dataset[0]
    assert texts(tokenizer, rows[1])[1:] == ("cat</s>", "cat\n</s>")


def test_other_features_move_along(make_tokenizer):
    prepared = prepare(as_rows((CHOSEN, REJECTED)), make_tokenizer("byte_level"), segments="steps")
    rewards = [[float(i) for i in ids] for ids in prepared.dataset["chosen_ids"]]
    featured = add_features(add_edits(prepared), {"chosen_rewards": rewards})
    [row] = share_steps(featured, keep=1).dataset
    assert row["chosen_rewards"] == row["chosen_ids"]
    for side in ("chosen", "rejected"):
        assert len(row[f"{side}_edits"]) == len(row[f"{side}_ids"])
        assert any(row[f"{side}_edits"])


def test_stream_is_moved_alike(make_tokenizer):
    tokenizer = make_tokenizer("byte_level")
    loaded = share_steps(prepare(as_rows((CHOSEN, REJECTED)), tokenizer, segments="steps"))
    rows = as_rows((CHOSEN, REJECTED), streaming=True)
    streamed = share_steps(prepare(rows, tokenizer, segments="steps"))
    assert list(streamed.dataset) == list(loaded.dataset)


LINES = st.lists(st.sampled_from(["the cat", "sat", "on the mat", "", "é"]), max_size=5)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(chosen=LINES, rejected=LINES, keep=st.sampled_from([None, 1, 2]))
def test_sharing_keeps_ids_and_departs_in_the_first_step(make_tokenizer, chosen, rejected, keep):
    chosen, rejected = "\n".join(chosen), "\n".join(rejected)
    if chosen == rejected or not chosen.strip() or not rejected.strip():
        return
    prepared = prepare(as_rows((chosen, rejected)), make_tokenizer("byte_level"), segments="steps")
    [before], [after] = prepared.dataset, share_steps(prepared, keep=keep).dataset
    moved = len(after["prompt_ids"]) - len(before["prompt_ids"])
    for side in ("chosen", "rejected"):
        ids, left = before[f"{side}_ids"], after[f"{side}_ids"]
        assert before["prompt_ids"] + ids[:moved] == after["prompt_ids"]
        assert left == ids[moved : moved + len(left)]
        assert left
        numbers = after[f"{side}_segments"]
        assert len(numbers) == len(left)
        assert numbers[0] == 0
        assert numbers == sorted(numbers)
        if keep is None:
            assert moved + len(left) == len(ids)
        else:
            assert max(numbers) < keep
    assert after["chosen_ids"] != after["rejected_ids"]
    # No further step is shared: the first step left is not the same on both sides.
    first = [
        [i for i, n in zip(after[f"{s}_ids"], after[f"{s}_segments"], strict=True) if n == 0]
        for s in ("chosen", "rejected")
    ]
    assert first[0] != first[1]


def test_sharing_refuses_what_has_no_steps(make_tokenizer):
    tokenizer = make_tokenizer("byte_level")
    with pytest.raises(UserError, match=re.escape('prepare(rows, tokenizer, segments="steps")')):
        share_steps(prepare(as_rows((CHOSEN, REJECTED)), tokenizer))
    prepared = prepare(as_rows((CHOSEN, REJECTED)), tokenizer, segments="steps")
    with pytest.raises(UserError, match="keep is 0"):
        share_steps(prepared, keep=0)
