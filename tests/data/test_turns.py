"""Which tokens of an answer of several turns are the model's own."""

from pathlib import Path

import datasets
import pytest
import trl
from transformers import PreTrainedTokenizerFast

from tokenq.data import encode, prepare
from tokenq.data.loading import Rows
from tokenq.errors import UserError

END = {"other_turn_end": "<end_of_turn>", "turn_end_then_eos": "</s>", "bos_and_inst": "</s>"}
TWO_ENDS = (
    "{% for m in messages %}{{ '<turn>' + m['role'] + '\n' + m['content'] }}"
    "{{ '<|im_end|><end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>assistant\n' }}{% endif %}"
)
TRL_TEMPLATES = Path(trl.__file__).parent / "chat_templates"


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


PROMPT = [user("What is the capital?")]
ANSWER = [assistant("the cat"), user("again"), assistant("Paris"), user("more"), assistant("sat")]


def as_rows(*completions, kind="sft", streaming=False, **columns):
    rows = [
        {"row": 3 + i, "prompt": PROMPT, "completion": completion, **columns}
        for i, completion in enumerate(completions)
    ]
    dataset = datasets.Dataset.from_list(rows)
    return Rows(dataset.to_iterable_dataset() if streaming else dataset, kind, "h", "f", 0)


def parts(tokenizer, ids, segments):
    """(segment, text) of each stretch of tokens with one number."""
    assert len(ids) == len(segments)
    cuts = [i for i in range(len(ids)) if not i or segments[i] != segments[i - 1]]
    return [
        (segments[first], tokenizer.decode(ids[first:last]))
        for first, last in zip(cuts, [*cuts[1:], len(ids)], strict=True)
    ]


@pytest.fixture
def chatty(make_tokenizer):
    return make_tokenizer("byte_level", "default_system", eos="<|im_end|>")


def test_turns_by_hand(chatty):
    [row] = prepare(as_rows(ANSWER), chatty).dataset
    assert parts(chatty, row["completion_ids"], row["completion_segments"]) == [
        (0, "the cat<|im_end|>"),
        (-1, "\n<|im_start|>user\nagain<|im_end|>\n<|im_start|>assistant\n"),
        (1, "Paris<|im_end|>"),
        (-1, "\n<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n"),
        (2, "sat<|im_end|>"),
    ]


@pytest.mark.parametrize("backend", ["byte_level", "llama_like", "unigram", "wordpiece"])
@pytest.mark.parametrize(
    "template",
    [
        "chatml",
        "default_system",
        "trimming",
        "other_turn_end",
        "bos_and_inst",
        "shouting",
        "two_ends",
    ],
)
def test_a_turn_has_the_ids_of_a_row_of_its_own(make_tokenizer, backend, template):
    if template == "two_ends":
        tokenizer = make_tokenizer(backend)
        tokenizer.chat_template = TWO_ENDS
    else:
        tokenizer = make_tokenizer(backend, template, eos=END.get(template, "<|im_end|>"))
    rows = as_rows(ANSWER)
    [row] = prepare(rows, tokenizer).dataset
    ids, segments = row["completion_ids"], row["completion_segments"]
    assert ids == prepare(rows, tokenizer, segments="none").dataset[0]["completion_ids"]
    for number, place in enumerate((0, 2, 4)):
        own = [i for i, segment in zip(ids, segments, strict=True) if segment == number]
        told = {"prompt": [*PROMPT, *ANSWER[:place]], "completion": [ANSWER[place]], "row": 0}
        alone = Rows(datasets.Dataset.from_list([told]), "sft", "h", "f", 0)
        [expected] = prepare(alone, tokenizer).dataset
        assert own == expected["completion_ids"]
        first = segments.index(number)
        assert row["prompt_ids"] + ids[:first] == expected["prompt_ids"]
    assert set(segments) == {-1, 0, 1, 2}


def test_template_that_closes_a_conversation_with_more_than_a_turn(make_tokenizer):
    tokenizer = make_tokenizer("byte_level", "turn_end_then_eos")
    [row] = prepare(as_rows(ANSWER), tokenizer).dataset
    own = parts(tokenizer, row["completion_ids"], row["completion_segments"])
    assert own[0] == (0, "the cat<end_of_turn>")
    assert own[2] == (1, "Paris<end_of_turn>")
    assert own[4] == (2, "sat<end_of_turn>\n</s>")


@pytest.mark.parametrize(
    "name", ["qwen3", "qwen3_instruct_2507", "gemma", "gemma3", "lfm2", "qwen2_5_vl"]
)
def test_turns_are_where_trl_s_templates_mark_generation(make_tokenizer, name):
    eos = "<end_of_turn>" if name.startswith("gemma") else "<|im_end|>"
    tokenizer = make_tokenizer("byte_level", eos=eos)
    tokenizer.chat_template = (TRL_TEMPLATES / f"{name}_training.jinja").read_text()
    marked = tokenizer.apply_chat_template(
        [*PROMPT, *ANSWER], return_dict=True, return_assistant_tokens_mask=True
    )
    [row] = prepare(as_rows(ANSWER), tokenizer).dataset
    ids = row["prompt_ids"] + row["completion_ids"]
    assert ids == marked["input_ids"][: len(ids)]
    mask = [0] * len(row["prompt_ids"]) + [int(s >= 0) for s in row["completion_segments"]]
    # They also mark the line end behind a turn, which a model that stops at the turn's end token
    # never writes.
    end = tokenizer.eos_token_id
    expected = [
        int(each and not (at and ids[at - 1] == end))
        for at, each in enumerate(marked["assistant_masks"][: len(ids)])
    ]
    assert mask == expected


def test_tool_turns(make_tokenizer):
    tokenizer = make_tokenizer("byte_level", eos="<|im_end|>")
    tokenizer.chat_template = (TRL_TEMPLATES / "qwen3_training.jinja").read_text()
    call = {"type": "function", "function": {"name": "look_up", "arguments": {"what": "cat"}}}
    answer = [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "the mat"},
        assistant("on the mat"),
    ]
    rows = as_rows(answer)
    [row] = prepare(rows, tokenizer).dataset
    turns = parts(tokenizer, row["completion_ids"], row["completion_segments"])
    assert [number for number, _ in turns] == [0, -1, 1]
    assert '"look_up"' in turns[0][1]
    assert turns[0][1].endswith("</tool_call><|im_end|>")
    assert "the mat" in turns[1][1]
    assert turns[2][1].endswith("on the mat<|im_end|>")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("empty_think_before_answer", "turn 0 changes with later turns"),
        ("think_in_generation_prompt", "what precedes turn 1 changes with later turns"),
        ("no_turn_end", "turn 0 has no end token"),
    ],
)
def test_unfit_templates_are_refused(make_tokenizer, template, said):
    tokenizer = make_tokenizer("byte_level", template, eos="<|im_end|>")
    with pytest.raises(UserError, match=f"row 4: .*{said}.*accepted") as raised:
        prepare(as_rows([assistant("fine")], ANSWER), tokenizer)
    assert "\n" not in str(raised.value)
    # Without several turns there is nothing to tell apart.
    prepare(as_rows([assistant("fine")]), tokenizer, segments="turns")
    prepare(as_rows(ANSWER), tokenizer, segments="none")


def test_columns_are_there_where_an_answer_has_several_turns(chatty, make_tokenizer):
    single, several = [assistant("fine")], ANSWER
    assert "completion_segments" not in prepare(as_rows(single), chatty).dataset.column_names
    [row] = prepare(as_rows(single), chatty, segments="turns").dataset
    assert row["completion_segments"] == [0] * len(row["completion_ids"])
    mixed = prepare(as_rows(single, several), chatty).dataset
    assert set(mixed[0]["completion_segments"]) == {0}
    assert set(mixed[1]["completion_segments"]) == {-1, 0, 1, 2}
    # Of a stream the later rows are not known.
    streamed = prepare(as_rows(single, several, streaming=True), chatty).dataset
    assert list(streamed) == list(mixed)
    text = Rows(
        datasets.Dataset.from_list([{"row": 0, "prompt": "on", "completion": " the mat"}]),
        "sft", "h", "f", 0,
    )  # fmt: skip
    tokenizer = make_tokenizer("byte_level")
    assert "completion_segments" not in prepare(text, tokenizer).dataset.column_names
    [row] = prepare(text, tokenizer, segments="turns").dataset
    assert set(row["completion_segments"]) == {0}


def test_all_kinds_have_their_columns(chatty):
    pair = {"row": 0, "prompt": PROMPT, "chosen": ANSWER, "rejected": [assistant("sat")]}
    rows = Rows(datasets.Dataset.from_list([pair]), "preference", "h", "f", 0)
    [row] = prepare(rows, chatty).dataset
    assert set(row["chosen_segments"]) == {-1, 0, 1, 2}
    assert set(row["rejected_segments"]) == {0}

    answers = [ANSWER, [assistant("sat")], [assistant("sat")], ANSWER[:3]]
    ranked = {"row": 0, "prompt": PROMPT, "completions": answers, "ranks": [0, 1, 2, 3]}
    rows = Rows(datasets.Dataset.from_list([ranked]), "ranked", "h", "f", 0)
    [row] = prepare(rows, chatty).dataset
    # The repeated answer counts once, its numbers with it.
    assert [max(numbers) for numbers in row["completions_segments"]] == [2, 0, 1]
    lengths = [len(numbers) for numbers in row["completions_segments"]]
    assert lengths == [len(ids) for ids in row["completions_ids"]]

    [row] = prepare(as_rows(ANSWER, kind="unpaired", label=True), chatty).dataset
    assert set(row["completion_segments"]) == {-1, 0, 1, 2}


def test_cut_answers_have_cut_numbers(chatty):
    [whole] = prepare(as_rows(ANSWER), chatty).dataset
    length = len(whole["prompt_ids"]) + whole["completion_segments"].index(1)
    [row] = prepare(as_rows(ANSWER), chatty, max_length=length).dataset
    assert row["completion_segments"] == whole["completion_segments"][: len(row["completion_ids"])]
    assert set(row["completion_segments"]) == {-1, 0}


def test_the_fingerprint_tells_what_is_numbered(chatty):
    rows = as_rows(ANSWER)
    prints = [
        prepare(rows, chatty, segments="none").fingerprint,
        prepare(rows, chatty, segments="turns").fingerprint,
    ]
    assert len(set(prints)) == 2
    assert prepare(rows, chatty).fingerprint == prints[1]
    with pytest.raises(UserError, match="segments is 'words'; accepted: auto, turns"):
        prepare(rows, chatty, segments="words")


def test_a_turn_that_brings_its_end_token_has_it_once(chatty):
    answer = [assistant("the cat<|im_end|>"), *ANSWER[1:]]
    [row] = prepare(as_rows(answer), chatty).dataset
    turns = parts(chatty, row["completion_ids"], row["completion_segments"])
    assert turns[0] == (0, "the cat<|im_end|>")
    assert turns[1][1].startswith("<|im_end|>\n")


def test_single_answers_are_those_of_encode(chatty):
    encoded = encode(chatty, PROMPT, "the cat")
    [row] = prepare(as_rows([assistant("the cat")]), chatty, segments="turns").dataset
    assert row["completion_ids"] == encoded.response_ids


def test_real_template(bundled_model):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(bundled_model)
    [row] = prepare(as_rows(ANSWER), tokenizer).dataset
    turns = parts(tokenizer, row["completion_ids"], row["completion_segments"])
    assert [text for number, text in turns if number >= 0] == [
        f"{turn['content']}<|im_end|>" for turn in ANSWER[::2]
    ]
