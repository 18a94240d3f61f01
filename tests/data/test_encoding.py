"""Prompt and response to ids: boundary, BOS and EOS, characters behind tokens."""

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokenq.data import encode, encode_prompt
from tokenq.errors import UserError

ALL = ["byte_level", "byte_level_trimmed", "llama_like", "unigram", "wordpiece"]
BYTES = ["byte_level", "byte_level_trimmed", "blank_after_word"]
USER = [{"role": "user", "content": "What is the capital of France?"}]
TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=40)
SPACED = st.lists(
    st.sampled_from(
        [
            "the",
            "):\n",
            " ):\n\n",
            " cat",
            " ",
            "\n",
            "\n\n",
            "  sat",
            "é",
            "😀",
            "👩‍👩‍👧",
            "日本",
            "\t",
            ".",
            "1 2",
        ]
    ),
    min_size=1,
    max_size=12,
).map("".join)
quick = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def chat(text):
    return [{"role": "user", "content": text}]


def spoken(tokenizer, encoded, response):
    """The response's text by token, without the tokens that stand for none of it."""
    return [response[a:b] for a, b in encoded.offsets if a < b]


def check_offsets(encoded, response, covers_all=True):
    offsets = encoded.offsets
    assert len(offsets) == len(encoded.response_ids)
    assert all(0 <= a <= b <= len(response) for a, b in offsets)
    assert all(a1 <= a2 and b1 <= b2 for (a1, b1), (a2, b2) in pairwise(offsets))
    covered = {i for a, b in offsets for i in range(a, b)}
    if covers_all:
        assert covered == set(range(len(response)))
    return covered


# --- plain text


@pytest.mark.parametrize("backend", ALL)
def test_text_ends_with_eos_once_and_begins_with_bos_at_most_once(make_tokenizer, backend):
    tokenizer = make_tokenizer(backend)
    encoded = encode(tokenizer, "the cat", " sat on the mat")
    ids = encoded.prompt_ids + encoded.response_ids
    assert ids.count(tokenizer.eos_token_id) == 1
    assert ids[-1] == tokenizer.eos_token_id
    begins_with_bos = {"llama_like": 1, "wordpiece": 1}.get(backend, 0)
    assert ids.count(tokenizer.bos_token_id) == begins_with_bos
    assert encoded.prompt_ids.count(tokenizer.bos_token_id) == begins_with_bos


@pytest.mark.parametrize("backend", ALL)
def test_text_that_brings_its_own_bos_and_eos_gets_no_second_one(make_tokenizer, backend):
    tokenizer = make_tokenizer(backend)
    encoded = encode(tokenizer, "<s>the cat", " sat</s>")
    ids = encoded.prompt_ids + encoded.response_ids
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids.count(tokenizer.eos_token_id) == 1
    assert ids[-1] == tokenizer.eos_token_id


@quick
@given(prompt=TEXT, response=TEXT)
def test_text_round_trip(make_tokenizer, prompt, response):
    tokenizer = make_tokenizer("byte_level_trimmed")
    encoded = encode(tokenizer, prompt, response)
    whole = tokenizer.decode(encoded.prompt_ids + encoded.response_ids)
    # A prompt that merges into the response as a whole leaves BOS as the context.
    opening = "<s>" if encoded.prompt_ids == [tokenizer.bos_token_id] else ""
    assert whole == opening + prompt + response + "</s>"
    if not encoded.boundary_shifted:
        assert tokenizer.decode(encoded.response_ids) == response + "</s>"
        assert encoded.prompt_ids == tokenizer(prompt)["input_ids"]
    check_offsets(encoded, response)


@quick
@given(prompt=SPACED, response=SPACED)
@pytest.mark.parametrize("backend", BYTES)
def test_each_token_covers_its_own_characters(make_tokenizer, backend, prompt, response):
    """Against the bytes of the tokens, which say exactly what each one stands for."""
    tokenizer = make_tokenizer(backend)
    encoded = encode(tokenizer, prompt, response)
    place = {}
    for i, character in enumerate(prompt + response):
        for _ in character.encode():
            place[len(place)] = i
    alphabet = {c: b for b, c in _bytes_to_unicode().items()}
    at = 0
    if encoded.prompt_ids != [tokenizer.bos_token_id]:
        at = sum(map(len, tokenizer.convert_ids_to_tokens(encoded.prompt_ids)))
    for number, (start, end) in zip(encoded.response_ids[:-1], encoded.offsets, strict=False):
        token = tokenizer.convert_ids_to_tokens(number)
        assert all(c in alphabet for c in token)
        first, last = place[at] - len(prompt), place[at + len(token) - 1] + 1 - len(prompt)
        assert (start, end) == (max(first, 0), max(last, 0))
        at += len(token)
    assert encoded.offsets[-1] == (len(response), len(response))


def _bytes_to_unicode():
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in shown]
    return {b: chr(b) for b in shown} | {b: chr(256 + i) for i, b in enumerate(hidden)}


def test_merge_across_the_boundary_shifts_it(make_tokenizer):
    tokenizer = make_tokenizer("byte_level")
    ids = tokenizer("x the")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids)[-1] == "Ġthe"  # so the text below merges
    encoded = encode(tokenizer, "x t", "he")
    assert encoded.boundary_shifted
    assert tokenizer.decode(encoded.prompt_ids) == "x"
    assert tokenizer.decode(encoded.response_ids) == " the</s>"
    assert encoded.offsets == [(0, 2), (2, 2)]


def test_response_that_also_stands_in_the_prompt_is_found_behind_it(make_tokenizer):
    tokenizer = make_tokenizer("byte_level_trimmed", "default_system")
    response = "the cat sat"
    for prompt in ("the cat sat on the cat sat", chat("the cat sat. the cat sat")):
        encoded = encode(tokenizer, prompt, response)
        # The text after the prompt, whatever stands before.
        assert tokenizer.decode(encoded.response_ids).startswith(response)
        assert "".join(spoken(tokenizer, encoded, response)) == response


def test_empty_prompt_has_bos_as_its_context(make_tokenizer):
    tokenizer = make_tokenizer("byte_level")
    assert encode(tokenizer, "", "the cat").prompt_ids == [tokenizer.bos_token_id]
    with pytest.raises(UserError, match="no BOS"):
        encode(make_tokenizer("byte_level", bos=None), "", "the cat")


@pytest.mark.parametrize("template", [None, "chatml", "trimming"])
def test_empty_response_is_refused(make_tokenizer, template):
    tokenizer = make_tokenizer("byte_level", template)
    prompt = chat("the cat") if template else "the cat"
    with pytest.raises(UserError, match="response is empty"):
        encode(tokenizer, prompt, "")


def test_response_that_the_tokenizer_drops_is_refused(make_tokenizer):
    with pytest.raises(UserError, match="no token"):
        encode(make_tokenizer("wordpiece"), "the cat", "  ")


def test_tokenizer_without_eos_is_refused(make_tokenizer):
    with pytest.raises(UserError, match="no EOS"):
        encode(make_tokenizer("byte_level", eos=None), "the cat", " sat")


def test_messages_need_a_template(make_tokenizer):
    with pytest.raises(UserError, match="no chat template"):
        encode(make_tokenizer("byte_level"), USER, "Paris")
    with pytest.raises(UserError, match="field 'prompt"):
        encode(make_tokenizer("byte_level", "chatml"), [{"role": "user"}], "Paris")


# --- chat templates


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize(
    ("template", "eos", "end"),
    [
        ("chatml", "<|im_end|>", "<|im_end|>"),
        ("default_system", "<|im_end|>", "<|im_end|>"),
        ("other_turn_end", "</s>", "<end_of_turn>"),
        ("no_turn_end", "</s>", "</s>"),
        ("turn_end_then_eos", "</s>", "</s>"),
        ("bos_and_inst", "</s>", "</s>"),
        ("trimming", "<|im_end|>", "<|im_end|>"),
        ("think_in_generation_prompt", "<|im_end|>", "<|im_end|>"),
        ("empty_think_before_answer", "<|im_end|>", "<|im_end|>"),
    ],
)
def test_templates(make_tokenizer, backend, template, eos, end):
    tokenizer = make_tokenizer(backend, template, eos=eos)
    response = "Paris, the capital"
    encoded = encode(tokenizer, USER, response)
    end_id = tokenizer.convert_tokens_to_ids(end)
    assert encoded.response_ids[-1] == end_id
    assert encoded.response_ids.count(end_id) == 1
    ids = encoded.prompt_ids + encoded.response_ids
    assert ids.count(tokenizer.bos_token_id) == (1 if template == "bos_and_inst" else 0)
    rendered = tokenizer.apply_chat_template(
        [*USER, {"role": "assistant", "content": response}], tokenize=False
    )
    whole = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    added = 1 if template == "no_turn_end" else 0
    assert ids[: len(ids) - added] == whole[: len(ids) - added]
    check_offsets(encoded, response, covers_all=backend != "wordpiece")
    assert "".join(spoken(tokenizer, encoded, response)).replace(" ", "") == "Paris,thecapital"
    assert encoded.offsets[-1] == (len(response), len(response))


def test_token_that_ends_in_a_trimmed_blank_keeps_it(make_tokenizer):
    tokenizer = make_tokenizer("blank_after_word")
    response = "the cat sat"
    encoded = encode(tokenizer, "on ", response)
    assert tokenizer.convert_ids_to_tokens(encoded.response_ids)[0] == "theĠ"
    assert encoded.offsets[0] == (0, 4)


def test_response_that_brings_the_end_token_has_it_once(make_tokenizer):
    tokenizer = make_tokenizer("byte_level", "chatml", eos="<|im_end|>")
    encoded = encode(tokenizer, USER, "Paris<|im_end|>")
    assert tokenizer.decode(encoded.response_ids) == "Paris<|im_end|>"


def test_default_system_prompt_is_in_the_prompt_once(make_tokenizer):
    tokenizer = make_tokenizer("byte_level", "default_system", eos="<|im_end|>")
    encoded = encode(tokenizer, USER, "Paris.")
    assert tokenizer.decode(encoded.prompt_ids) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(encoded.response_ids) == "Paris.<|im_end|>"
    assert not encoded.boundary_shifted


def test_think_block_only_in_the_generation_prompt_shifts_the_boundary(make_tokenizer):
    tokenizer = make_tokenizer("byte_level", "think_in_generation_prompt", eos="<|im_end|>")
    encoded = encode(tokenizer, USER, "Paris")
    assert encoded.boundary_shifted
    assert tokenizer.decode(encoded.prompt_ids).endswith("<|im_start|>assistant\n")
    # An answer that itself begins with the block continues the generation prompt.
    encoded = encode(tokenizer, USER, "<think>\nwell</think>Paris")
    assert not encoded.boundary_shifted
    assert tokenizer.decode(encoded.response_ids) == "well</think>Paris<|im_end|>"
    assert encoded.offsets[0][0] == len("<think>\n")


def test_think_block_that_the_template_puts_before_the_answer_has_no_text(make_tokenizer):
    tokenizer = make_tokenizer("byte_level", "empty_think_before_answer", eos="<|im_end|>")
    for response in ("Paris", "<", "<think>"):
        encoded = encode(tokenizer, USER, response)
        assert (
            tokenizer.decode(encoded.response_ids) == f"<think>\n\n</think>\n\n{response}<|im_end|>"
        )
        assert "".join(spoken(tokenizer, encoded, response)) == response
        assert encoded.offsets[0] == (0, 0)
        check_offsets(encoded, response)


def test_trimmed_response_keeps_its_offsets(make_tokenizer):
    tokenizer = make_tokenizer("byte_level_trimmed", "trimming", eos="<|im_end|>")
    response = " \n the cat \n"
    encoded = encode(tokenizer, USER, response)
    assert tokenizer.decode(encoded.response_ids) == "the cat<|im_end|>"
    assert spoken(tokenizer, encoded, response)[0].startswith("t")
    assert "".join(spoken(tokenizer, encoded, response)) == "the cat"
    with pytest.raises(UserError, match="empty"):
        encode(tokenizer, USER, "  \n")


def test_rewritten_response_is_refused(make_tokenizer):
    tokenizer = make_tokenizer("byte_level", "shouting", eos="<|im_end|>")
    with pytest.raises(UserError, match="rewrites the response"):
        encode(tokenizer, USER, "Paris")
    assert encode(tokenizer, USER, "PARIS").offsets[-1] == (5, 5)


def test_template_refusal_is_a_user_error(make_tokenizer):
    tokenizer = make_tokenizer("byte_level", "bos_and_inst")
    system = [{"role": "system", "content": "Be brief."}, *USER]
    with pytest.raises(UserError, match="Only user and assistant"):
        encode(tokenizer, system, "Paris")


def test_template_arguments_reach_the_template(make_tokenizer):
    tokenizer = make_tokenizer("byte_level", "with_tools", eos="<|im_end|>")
    tools = [{"type": "function", "function": {"name": "look_up"}}]
    for given_tools in (tools, '[{"type": "function", "function": {"name": "look_up"}}]'):
        encoded = encode(
            tokenizer, USER, "Paris", tools=given_tools, chat_template_kwargs={"shout": True}
        )
        text = tokenizer.decode(encoded.prompt_ids)
        assert text.startswith('TOOLS [{"type": "function"')
        assert "look_up" in text.splitlines()[0]
        assert text.splitlines()[1] == "SHOUT"
    assert "SHOUT" not in tokenizer.decode(encode(tokenizer, USER, "Paris").prompt_ids)


@quick
@given(question=TEXT, response=TEXT)
@pytest.mark.parametrize("template", ["default_system", "empty_think_before_answer", "trimming"])
def test_chat_round_trip(make_tokenizer, template, question, response):
    tokenizer = make_tokenizer("byte_level_trimmed", template, eos="<|im_end|>")
    if not response.strip():
        with pytest.raises(UserError, match="empty"):
            encode(tokenizer, chat(question), response)
        return
    encoded = encode(tokenizer, chat(question), response)
    covered = check_offsets(encoded, response, covers_all=template != "trimming")
    written = tokenizer.decode(encoded.response_ids)
    if template == "trimming":
        kept = response.strip()
        assert written == kept + "<|im_end|>"
        lead = response.index(kept)
        assert covered == set(range(lead, lead + len(kept)))
    else:
        assert written.endswith(response + "<|im_end|>")


def test_prompt_alone_is_what_a_response_follows(make_tokenizer):
    tokenizer = make_tokenizer("wordpiece", "chatml", eos="<|im_end|>")
    assert encode_prompt(tokenizer, USER) == encode(tokenizer, USER, "Paris").prompt_ids
    assert encode_prompt(tokenizer, "the cat") == encode(tokenizer, "the cat", " sat").prompt_ids
    assert encode_prompt(tokenizer, "") == [tokenizer.bos_token_id]


def test_real_tokenizer(bundled_model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bundled_model)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id  # no mask may come from pad
    response = "Die Brücke 😀 cost  12 francs.\n\n\tYes: 日本語"
    encoded = encode(tokenizer, USER, response)
    text = tokenizer.decode(encoded.prompt_ids)
    assert text.count("<|im_start|>system") == 1
    assert text.endswith("<|im_start|>assistant\n")
    assert tokenizer.decode(encoded.response_ids) == response + "<|im_end|>"
    assert encoded.response_ids.count(tokenizer.eos_token_id) == 1
    assert not encoded.boundary_shifted
    check_offsets(encoded, response)
    for number, (start, end) in zip(encoded.response_ids[:-1], encoded.offsets, strict=False):
        decoded = tokenizer.decode([number])
        assert "\ufffd" in decoded or decoded == response[start:end]
