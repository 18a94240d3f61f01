"""Surface changes: what they change and what they leave."""

import re

from hypothesis import given
from hypothesis import strategies as st

from tokenq.data.perturbations import perturb


def test_every_variant_of_a_summary() -> None:
    assert perturb("tool to show Alice's images") == {
        "full_stop": "tool to show Alice's images.",
        "first_letter": "Tool to show Alice's images",
        "newline": "tool to show Alice's images\n",
        "leading_blank": " tool to show Alice's images",
        "double_blank": "tool  to show Alice's images",
        "quoted": '"tool to show Alice\'s images"',
        "curly_quotes": "tool to show Alice\u2019s images",
        "bold": "**tool to show Alice's images**",
        "synonym": "utility to show Alice's images",
        "paraphrase": "tool that can show Alice's images",
    }


def test_what_is_there_is_taken_away_and_names_keep_their_case() -> None:
    assert perturb("A word.")["full_stop"] == "A word"
    assert perturb('"A word"')["quoted"] == "A word"
    assert perturb('"A word"')["curly_quotes"] == "\u201cA word\u201d"
    assert perturb("Server for mail")["first_letter"] == "server for mail"
    assert "first_letter" not in perturb("GNOME panel")
    assert "first_letter" not in perturb("3D panel")
    assert perturb("  ") == {}


@given(st.text(max_size=60))
def test_variants_differ_and_keep_the_letters(text: str) -> None:
    variants = perturb(text)
    assert text not in variants.values()
    letters = re.sub(r"\W", "", text)
    for name in ("full_stop", "newline", "leading_blank", "double_blank", "quoted", "bold"):
        if name in variants:
            assert re.sub(r"\W", "", variants[name]) == letters
