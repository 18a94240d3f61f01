"""The table of methods: options as the functions have them, read from text, checked unopened."""

import inspect

import pytest
from small_pairs import small_tokenizer

from tokenq.errors import UserError
from tokenq.search.methods import METHODS, SHARED, documented, method, methods_with


@pytest.mark.parametrize("name", METHODS)
def test_options_are_the_keywords_of_the_function(name: str) -> None:
    way = METHODS[name]
    keywords = inspect.signature(way.function).parameters
    theirs = METHODS[way.search].options if way.search else {}
    for option in way.options.values():
        assert option.name in keywords or option.name in SHARED or option.name in theirs
        assert option.about, option.name
        assert ":class:" not in option.about
        if option.name in keywords:
            assert option.default == keywords[option.name].default
    assert set(SHARED) <= set(way.options)


@pytest.mark.parametrize("name", METHODS)
def test_defaults_pass_the_check_without_a_model(name: str) -> None:
    METHODS[name].check(50, {}, reference=True, tokenizer=small_tokenizer())


def test_texts_become_what_the_annotation_says() -> None:
    options = METHODS["beam"].options
    assert options["num_beams"].read("7") == 7
    assert options["score"].read("0.5") == 0.5
    assert options["score"].read("log_ratio") == "log_ratio"
    assert [options["early_stopping"].read(text) for text in ("true", "False", "never")] == [
        True,
        False,
        "never",
    ]
    assert options["eos_token_id"].many
    with pytest.raises(UserError, match="length_penalty is 'x'; accepted: a number"):
        options["length_penalty"].read("x")


def test_a_guided_method_takes_the_options_of_its_search() -> None:
    way = method("alignment_aware")
    assert "num_beams" not in way.options
    beam = way.searching("beam")
    assert beam.options["num_beams"].default == 5
    beam.check(50, {"num_beams": 3, "search": "beam"}, reference=True)
    with pytest.raises(UserError, match="needs a reference"):
        beam.check(50, {"num_beams": 3, "search": "beam"}, reference=False)
    with pytest.raises(UserError, match="num_beams is 51; accepted: up to 50"):
        beam.check(50, {"num_beams": 51, "search": "beam"}, reference=True)
    with pytest.raises(UserError, match="search is 'x'; accepted"):
        way.searching("x")
    assert method("greedy").searching("x") == method("greedy")


def test_options_are_found_with_their_methods() -> None:
    assert "beam" in methods_with("num_beams")
    assert methods_with("nothing") == []


def test_a_docstring_is_read_argument_by_argument() -> None:
    text = """Do it.

    one:      the first,
              and more
    two, three: both

    Raises nothing: really.
    """
    assert documented(text) == {"one": "the first, and more", "two": "both", "three": "both"}
