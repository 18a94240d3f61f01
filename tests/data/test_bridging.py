"""Bridged pairs: editors, what counts as an edit, provenance and counts."""

import json

import datasets
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_pairs import random_model, small_tokenizer

from tokenq.data import AcceptedSpans, ModelEditor, SmallestCorrect, bridge, load_rows, prepare
from tokenq.data.bridging import UNBRIDGED_REASONS, EditSpan, at_most, words
from tokenq.data.encoding import encode_prompt
from tokenq.data.loading import Rows
from tokenq.errors import UserError

CHOSEN = "Adding 3 and 4 gives 7. So the whole answer is 7, as one can see."
REJECTED = "Adding 3 and 4 gives 8. So the answer is 8."
PAIR = {"prompt": "3 + 4?", "chosen": CHOSEN, "rejected": REJECTED}


def as_rows(*pairs, streaming=False):
    dataset = datasets.Dataset.from_list([{"row": i, **pair} for i, pair in enumerate(pairs)])
    dataset = dataset.to_iterable_dataset() if streaming else dataset
    return Rows(dataset, "preference", "here", "fingerprint", 0)


def saying(answer):
    return lambda prompt, chosen, rejected: answer


@given(text=st.text(max_size=60))
def test_words_are_the_text(text):
    assert "".join(words(text)) == text


def test_words_by_hand():
    assert words(" It's 3.50, or 1,000!\n") == [
        " It", "'", "s", " 3.50", ",", " or", " 1,000", "!", "\n"
    ]  # fmt: skip


def test_accepted_spans():
    seen = []
    AcceptedSpans(lambda span: bool(seen.append(span)))("", CHOSEN, REJECTED)
    assert seen == [
        EditSpan(" 8", " 7", 1),
        EditSpan("", " whole", 1),
        EditSpan(" 8", " 7, as one can see", 6),
    ]
    small = AcceptedSpans(at_most(1))("", CHOSEN, REJECTED)
    assert small == "Adding 3 and 4 gives 7. So the whole answer is 8."
    assert AcceptedSpans(at_most(6))("", CHOSEN, REJECTED) == CHOSEN
    assert AcceptedSpans(at_most(0))("", CHOSEN, REJECTED) is None
    numbers = AcceptedSpans(lambda span: span.removed.strip().isdigit())("", CHOSEN, REJECTED)
    assert numbers == REJECTED.replace("gives 8", "gives 7").replace(" 8.", " 7, as one can see.")


TEXTS = st.lists(st.sampled_from(["a", "b", "c", ".", "\n"]), max_size=12).map(" ".join)


@given(chosen=TEXTS, rejected=TEXTS)
def test_all_spans_make_the_chosen_answer(chosen, rejected):
    edit = AcceptedSpans(lambda span: True)("", chosen, rejected)
    assert edit == (None if chosen == rejected else chosen)


def test_smallest_correct_edit():
    asked = []

    def says_seven(prompt, answer):
        asked.append(prompt)
        return "gives 7" in answer

    edit = SmallestCorrect(says_seven)("3 + 4?", CHOSEN, REJECTED)
    assert edit == REJECTED.replace("gives 8", "gives 7")
    assert set(asked) == {"3 + 4?"}
    assert SmallestCorrect(lambda p, a: False)("", CHOSEN, REJECTED) is None
    assert SmallestCorrect(lambda p, a: True)("", CHOSEN, REJECTED) is None


@given(chosen=TEXTS, rejected=TEXTS, wanted=st.sets(st.sampled_from("abc")))
def test_smallest_correct_is_correct_and_minimal(chosen, rejected, wanted):
    def is_correct(prompt, answer):
        return wanted <= set(answer)

    edit = SmallestCorrect(is_correct)("", chosen, rejected)
    if not is_correct("", chosen) or is_correct("", rejected):
        assert edit is None
        return
    assert is_correct("", edit)
    # Each remaining edit is needed: taking over all but one of them is wrong.
    spans = []
    AcceptedSpans(lambda span: bool(spans.append(span)))("", edit, rejected)
    for left_out in range(len(spans)):
        numbers = iter(range(len(spans)))
        less = AcceptedSpans(lambda _, n=numbers, out=left_out: next(n) != out)("", edit, rejected)
        assert not is_correct("", rejected if less is None else less)


def test_smallest_correct_asks_again_after_each_edit_given_up():
    # Without its first edit the answer is right only once the second is gone as well.
    right = {"a1 and b1 and c1", "a1 and b0 and c1", "a0 and b0 and c1"}
    editor = SmallestCorrect(lambda prompt, answer: answer in right)
    assert editor("", "a1 and b1 and c1", "a0 and b0 and c0") == "a0 and b0 and c1"


def test_bridged_rows_keep_where_they_come_from():
    editor = SmallestCorrect(lambda prompt, answer: "8" not in answer)
    same = PAIR | {"rejected": "It is 7.", "note": "kept"}
    bridged = bridge(as_rows(PAIR | {"note": "a"}, same), editor)
    first, second = bridged.rows.dataset
    assert first == PAIR | {
        "row": 0,
        "note": "a",
        "chosen": "Adding 3 and 4 gives 7. So the answer is 7, as one can see.",
        "original_chosen": CHOSEN,
        "bridged": True,
    }
    assert second == same | {"row": 1, "original_chosen": CHOSEN, "bridged": False}
    assert bridged.counts == {"bridged": 1, "no_edit": 1}
    dropped = bridge(as_rows(PAIR | {"note": "a"}, same), editor, unbridged="drop")
    assert list(dropped.rows.dataset) == [first]
    assert dropped.counts == bridged.counts
    prints = {"fingerprint", bridged.rows.fingerprint, dropped.rows.fingerprint}
    assert len(prints) == 3
    with pytest.raises(UserError, match="bridged already"):
        bridge(bridged.rows, editor)


@pytest.mark.parametrize(
    ("edit", "outcome"),
    [
        (None, "no_edit"),
        (" \n", "no_edit"),
        (REJECTED, "unchanged"),
        (CHOSEN, "chosen_itself"),
        ("Something else altogether, much longer than what either of the two answers is.",
         "farther"),
        (REJECTED.replace("8", "7"), "bridged"),
    ],
)  # fmt: skip
def test_what_becomes_of_an_edit(edit, outcome):
    bridged = bridge(as_rows(PAIR), saying(edit))
    assert bridged.counts == {outcome: 1}
    assert set(bridged.counts) <= {"bridged", *UNBRIDGED_REASONS}
    [row] = bridged.rows.dataset
    assert row["chosen"] == (edit if outcome == "bridged" else CHOSEN)
    if outcome != "bridged":
        with pytest.raises(UserError, match=f"no row could be bridged .1 {outcome}"):
            bridge(as_rows(PAIR), saying(edit), unbridged="drop")


def test_distance_is_counted_in_the_given_items():
    pair = {"prompt": "", "chosen": "ab cdefghij", "rejected": "ab xy"}
    # One word as far as the chosen answer is; in letters farther, or nearer.
    for edit, outcome in (("ab klmnopqrstuvw", "farther"), ("ab xz", "bridged")):
        assert bridge(as_rows(pair), saying(edit)).counts == {"bridged": 1}
        assert bridge(as_rows(pair), saying(edit), tokenise=list).counts == {outcome: 1}


def test_messages_keep_their_form(tmp_path):
    turn = {"role": "assistant", "content": CHOSEN, "name": "bot"}
    chat = {
        "prompt": [{"role": "user", "content": "3 + 4?"}],
        "chosen": [turn],
        "rejected": [turn | {"content": REJECTED}],
    }
    several = chat | {"chosen": [turn, {"role": "user", "content": "so", "name": ""}, turn]}
    edit = REJECTED.replace("8", "7")
    asked = []
    bridged = bridge(as_rows(chat, several), lambda *parts: asked.append(parts) or edit)
    assert bridged.counts == {"bridged": 1, "several_turns": 1}
    assert bridged.rows.dataset[0]["chosen"] == [turn | {"content": edit}]
    assert bridged.rows.dataset[1]["chosen"] == several["chosen"]
    assert asked == [(chat["prompt"], CHOSEN, REJECTED)]
    # What is written can be loaded and trained on.
    bridged.rows.dataset.to_json(tmp_path / "bridged.jsonl")
    rows = load_rows(tmp_path / "bridged.jsonl")
    assert rows.kind == "preference"
    tokenizer = small_tokenizer()
    first = prepare(rows, tokenizer).dataset[0]
    assert tokenizer.decode(first["chosen_ids"]) == edit + "</s>"


def test_only_loaded_pairs_are_bridged():
    with pytest.raises(UserError, match="streaming=False"):
        bridge(as_rows(PAIR, streaming=True), saying("x"))


class Recorder:
    """A model that writes what it is told to and keeps what it was asked."""

    def __init__(self, ids, positions=None):
        self.ids, self.asked = ids, None
        self.config = type("Config", (), {"max_position_embeddings": positions})()
        self.generation_config = None
        self.device = "cpu"

    def generate(self, inputs, attention_mask, generation_config):
        assert attention_mask.tolist() == [[1] * inputs.shape[1]]
        assert not generation_config.do_sample
        self.asked, self.room = inputs[0].tolist(), generation_config.max_new_tokens
        written = torch.tensor([self.ids])[:, : self.room]
        return torch.cat([inputs, written], dim=1)


def test_model_editor_asks_and_reads():
    tokenizer = small_tokenizer()
    edit = REJECTED.replace("8", "7")
    model = Recorder([*tokenizer(" " + edit + "\n")["input_ids"], tokenizer.eos_token_id])
    assert ModelEditor(model, tokenizer)("3 + {4}?", CHOSEN, REJECTED) == edit
    asked = tokenizer.decode(model.asked)
    assert asked.startswith("<|user|>\nBelow are a task")
    assert asked.endswith("<|assistant|>\n")
    for name, text in (("Task", "3 + {4}?"), ("Answer A", REJECTED), ("Answer B", CHOSEN)):
        assert f"{name}:\n{text}" in asked
    sizes = [len(tokenizer(text)["input_ids"]) for text in (REJECTED, CHOSEN)]
    assert model.room == sum(sizes) + 1

    dialogue = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    editor = ModelEditor(model, tokenizer, "{prompt}|{chosen}|{rejected}")
    editor(dialogue, "a", "b")
    assert tokenizer.decode(model.asked) == (
        "<|user|>\nuser: Hi\nassistant: Yes?|a|b<|assistant|>\n"
    )


def test_model_editor_gives_up():
    tokenizer = small_tokenizer()
    endless = Recorder(tokenizer("no end " * 40)["input_ids"])
    assert ModelEditor(endless, tokenizer)("Q", "a b", "a c") is None
    short = Recorder([tokenizer.eos_token_id], positions=100)
    assert ModelEditor(short, tokenizer)("Q", "a b", "a c") is None
    assert short.asked is None
    silent = Recorder([tokenizer.eos_token_id])
    assert ModelEditor(silent, tokenizer)("Q", "a b", "a c") is None
    assert silent.asked is not None
    for instruction in ("{prompt} {chosen}", "{prompt}{chosen}{rejected}{more}", "{", "{}"):
        with pytest.raises(UserError, match="edit instruction"):
            ModelEditor(silent, tokenizer, instruction)


def test_model_editor_decodes_greedily():
    tokenizer = small_tokenizer()
    model = random_model("llama", len(tokenizer), seed=1)
    model.config.max_position_embeddings = 2048
    instruction = "{prompt}{chosen}{rejected}"
    editor = ModelEditor(model, tokenizer, instruction)
    ids = encode_prompt(tokenizer, [{"role": "user", "content": "Qa b ca b d"}])
    written = []
    with torch.no_grad():
        while len(written) < 2 or written[-1] in written[:-1]:
            logits = model(torch.tensor([ids + written])).logits[0, -1]
            written.append(int(logits.argmax()))
    assert len(written) <= 7  # two answers of three tokens, and the end
    # The first new token is declared to be the model's end.
    model.generation_config.eos_token_id = [written[-1]]
    expected = tokenizer.decode(written[:-1], skip_special_tokens=True).strip()
    assert expected
    assert editor("Q", "a b c", "a b d") == expected


@pytest.mark.slow
def test_bundled_model_as_editor(bundled_model):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bundled_model)
    model = AutoModelForCausalLM.from_pretrained(bundled_model).eval()
    pair = {"prompt": "Capital of Peru?", "chosen": "It is Lima.", "rejected": "It is Cusco, yes."}
    bridged = bridge(as_rows(pair), ModelEditor(model, tokenizer, max_new_tokens=24))
    assert sum(bridged.counts.values()) == 1
    [row] = bridged.rows.dataset
    assert row["original_chosen"] == pair["chosen"]
    assert json.dumps(row)
