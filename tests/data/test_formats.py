"""Kinds of rows, and what is refused in a row."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenq.data.formats import MalformedRow, RowFormat, split_common_prompt
from tokenq.errors import UserError


def user(text):
    return {"role": "user", "content": text}


def said(text):
    return {"role": "assistant", "content": text}


def normalise(row):
    return RowFormat.detect(row, [row]).normalise(row)


@pytest.mark.parametrize(
    ("columns", "kind"),
    [
        ({"prompt", "chosen", "rejected"}, "preference"),
        ({"chosen", "rejected", "score_chosen"}, "preference"),
        ({"prompt", "chosen", "rejected", "messages", "prompt_id"}, "preference"),
        ({"messages"}, "sft"),
        ({"prompt", "completion"}, "sft"),
        ({"prompt", "messages"}, "sft"),
        ({"prompt", "completion", "label"}, "unpaired"),
        ({"prompt", "completions"}, "ranked"),
        ({"prompt", "completions", "scores"}, "ranked"),
        ({"prompt", "responses"}, "ranked"),
        ({"prompt", "completion", "responses"}, "sft"),
    ],
)
def test_kind_by_columns(columns, kind):
    assert RowFormat.detect(columns, []).kind == kind


@pytest.mark.parametrize(
    ("columns", "said_why"),
    [
        ({"text"}, "columns text"),
        ({"prompt", "chosen"}, "columns chosen, prompt"),
        ({"prompt", "completions", "labels"}, "labelled steps"),
        ({"prompt", "completions", "scores", "ranks"}, "scores and ranks"),
    ],
)
def test_unknown_columns(columns, said_why):
    with pytest.raises(UserError, match=said_why):
        RowFormat.detect(columns, [])


def test_preference_text():
    row = {"prompt": "Q", "chosen": " a", "rejected": " b"}
    assert normalise(row) == row


def test_preference_messages():
    row = {"prompt": [user("Q")], "chosen": [said("a")], "rejected": [said("b")]}
    assert normalise(row) == row
    # Answers as text under a message prompt, and the prompt repeated in the answers.
    assert normalise({"prompt": [user("Q")], "chosen": "a", "rejected": "b"}) == row
    repeated = {
        name: [user("Q"), said(text)] for name, text in (("chosen", "a"), ("rejected", "b"))
    }
    assert normalise({"prompt": [user("Q")], **repeated}) == row
    assert normalise({"prompt": "Q", **repeated}) == row
    assert normalise(repeated) == row
    assert normalise({**row, "prompt": "Q"}) == row


def test_implicit_message_prompt_keeps_shared_answers_as_context():
    shared = [user("1"), said("one"), user("2")]
    row = {"chosen": [*shared, said("two")], "rejected": [*shared, said("three")]}
    assert normalise(row) == {
        "prompt": shared,
        "chosen": [said("two")],
        "rejected": [said("three")],
    }
    same = {"chosen": [*shared, said("two")], "rejected": [*shared, said("two")]}
    assert normalise(same)["prompt"] == shared
    # A later question that differs belongs to the answers, with the answer before it.
    row = {
        "chosen": [user("1"), said("one"), user("2"), said("two")],
        "rejected": [user("1"), said("one"), user("3"), said("three")],
    }
    assert normalise(row)["prompt"] == [user("1")]


def test_implicit_text_prompt():
    start = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Tea\n\nAssistant:"
    row = {"chosen": start + " I like it", "rejected": start + " I hate it"}
    assert normalise(row) == {
        "prompt": start,
        "chosen": " I like it",
        "rejected": " I hate it",
    }
    assert split_common_prompt("Q: tea? A: yes", "Q: tea? A: yesterday") == (
        "Q: tea? A:",
        [" yes", " yesterday"],
    )
    assert split_common_prompt("Q: A: yes", "Q: A: yes it is")[0] == "Q: A:"
    assert split_common_prompt("Q\nyes", "Q\nno") == ("Q\n", ["yes", "no"])
    assert split_common_prompt("same same", "same same") == ("", ["same same"] * 2)


@given(st.text(min_size=1), st.text(min_size=1))
def test_implicit_text_prompt_loses_nothing(chosen, rejected):
    try:
        prompt, answers = split_common_prompt(chosen, rejected)
    except MalformedRow:
        return
    assert [prompt + each for each in answers] == [chosen, rejected]
    assert all(each.strip() for each in answers)


def test_sft_messages_end_with_the_last_answer():
    row = {"messages": [user("1"), said("one"), user("2"), said("two"), user("thanks")]}
    assert normalise(row) == {
        "prompt": [user("1"), said("one"), user("2")],
        "completion": [said("two")],
    }


def test_ranked_is_best_first_and_ties_share_a_rank():
    row = {"prompt": "Q", "completions": ["a", "b", "c"]}
    assert normalise(row) == {**row, "ranks": [0, 1, 2]}
    scored = {"prompt": "Q", "completions": ["a", "b", "c", "d"], "scores": [1, 3.5, 1, 2]}
    assert normalise(scored) == {
        "prompt": "Q",
        "completions": ["b", "d", "a", "c"],
        "ranks": [0, 1, 2, 2],
    }
    ranked = {"prompt": "Q", "completions": ["a", "b"], "ranks": [2, 1]}
    assert normalise(ranked)["completions"] == ["b", "a"]


def test_responses_have_no_order_of_their_own():
    row = {"prompt": "Q", "responses": ["a", "b", "c"]}
    expected = {"prompt": "Q", "completions": ["a", "b", "c"], "ranks": [0, 0, 0]}
    assert normalise(row) == expected
    assert normalise({**row, "scores": [1, 3, 2]})["completions"] == ["b", "c", "a"]
    chat = {"prompt": [user("Q")], "responses": [[said("a")], [said("b")]]}
    assert normalise(chat)["completions"] == chat["responses"]
    with pytest.raises(MalformedRow, match="field 'responses' is"):
        normalise({"prompt": "Q", "responses": ["a"]})
    with pytest.raises(MalformedRow, match=r"field 'responses\[1\]' is empty"):
        normalise({"prompt": "Q", "responses": ["a", " "]})


def test_arrow_nulls_in_messages_are_not_keys():
    row = {
        "prompt": [{**user("Q"), "tool_calls": None}],
        "chosen": [{"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}],
        "rejected": [{**said("b"), "tool_calls": None}],
    }
    assert normalise(row) == {
        "prompt": [user("Q")],
        "chosen": [{"role": "assistant", "tool_calls": [{"name": "f"}]}],
        "rejected": [said("b")],
    }


GOOD = {"prompt": "Q", "chosen": "a", "rejected": "b"}
CHAT = {"prompt": [user("Q")], "chosen": [said("a")], "rejected": [said("b")]}
UNPAIRED = {"prompt": "Q", "completion": "a", "label": True}
RANKED = {"prompt": "Q", "completions": ["a", "b"], "scores": [1, 2]}


@pytest.mark.parametrize(
    ("good", "change", "field"),
    [
        (GOOD, {"chosen": ""}, "chosen"),
        (GOOD, {"chosen": "  \n"}, "chosen"),
        (GOOD, {"rejected": None}, "rejected"),
        (GOOD, {"rejected": 5}, "rejected"),
        (GOOD, {"prompt": None}, "prompt"),
        (GOOD, {"prompt": 3}, "prompt"),
        (GOOD, {"chosen": [said("a")]}, "chosen"),
        (GOOD, {"prompt": [user("Q")]}, "prompt"),
        (GOOD, {"chosen": "half \ud800"}, "chosen"),
        (GOOD, {"tools": "{not json"}, "tools"),
        (GOOD, {"tools": {"a": 1}}, "tools"),
        (GOOD, {"chat_template_kwargs": [1]}, "chat_template_kwargs"),
        (CHAT, {"chosen": "a"}, "chosen"),
        (CHAT, {"chosen": []}, "chosen"),
        (CHAT, {"chosen": ["a"]}, "chosen[0]"),
        (CHAT, {"chosen": [{"role": "assistant"}]}, "chosen[0].content"),
        (CHAT, {"chosen": [{"content": "a"}]}, "chosen[0].role"),
        (CHAT, {"chosen": [{"role": 1, "content": "a"}]}, "chosen[0].role"),
        (CHAT, {"chosen": [{"role": "assistant", "content": 4}]}, "chosen[0].content"),
        (CHAT, {"chosen": [said(" ")]}, "chosen[0].content"),
        (CHAT, {"chosen": [said("a"), user("b")]}, "chosen"),
        (CHAT, {"chosen": [user("b"), said("a")]}, "chosen"),
        (CHAT, {"prompt": []}, "prompt"),
        (CHAT, {"prompt": [user("Q"), said("a")]}, "prompt"),
        (UNPAIRED, {"label": None}, "label"),
        (UNPAIRED, {"label": "yes"}, "label"),
        (UNPAIRED, {"label": 2}, "label"),
        (RANKED, {"completions": ["a"]}, "completions"),
        (RANKED, {"completions": "a"}, "completions"),
        (RANKED, {"completions": ["a", ""]}, "completions[1]"),
        (RANKED, {"scores": [1]}, "scores"),
        (RANKED, {"scores": [1, float("nan")]}, "scores[1]"),
        (RANKED, {"scores": [True, 1]}, "scores[0]"),
        ({"messages": [user("Q"), said("a")]}, {"messages": [user("Q")]}, "messages"),
        ({"messages": [user("Q"), said("a")]}, {"messages": [said("a")]}, "messages"),
        ({"messages": [user("Q"), said("a")]}, {"messages": [user("Q"), said("")]}, "messages"),
    ],
)
def test_malformed(good, change, field):
    form = RowFormat.detect(good, [good])
    form.normalise(good)  # only the change is wrong
    with pytest.raises(MalformedRow) as caught:
        form.normalise({**good, **change})
    assert caught.value.field.startswith(field)
    assert f"field '{caught.value.field}'" in str(caught.value)
    assert "accepted: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_answers_that_differ_from_the_start_share_no_prompt():
    with pytest.raises(MalformedRow, match="shares no prompt"):
        normalise({"chosen": [user("1"), said("a")], "rejected": [user("2"), said("b")]})
