"""The terminal view: colours by sign and strength, and no control sequence of the data."""

import io
from typing import Any

import pytest
from rich.console import Console

from tokenq.report.terminal import colored_tokens, show_response, show_rows, token_style
from tokenq.report.visible import tame, visible


def record(tokens: list[str], rewards: list[float]) -> dict[str, Any]:
    text = "".join(tokens)
    offsets, at, values = [], 0, [0.0]
    for token in tokens:
        offsets.append([at, at + len(token)])
        at += len(token)
    for reward in rewards:
        values.append(values[-1] + reward)
    return {
        "prompt": "Review\x1b[2J:", "response": text, "beta": 0.1, "reward": sum(rewards),
        "tokens": [*tokens, "</s>"], "offsets": [*offsets, [at, at]], "rewards": rewards,
        "logps": [-1.0] * len(rewards), "ref_logps": [-1.0] * len(rewards), "values": values,
        "alternatives": [[{"token": "\x1b]0;x", "reward": 0.3}]] * len(rewards),
    }  # fmt: skip


def printed(show: Any, *arguments: Any, color: bool = False) -> str:
    file = io.StringIO()
    system = "truecolor" if color else None
    console = Console(file=file, width=100, force_terminal=color, color_system=system)
    show(console, *arguments)
    return file.getvalue()


def test_visible() -> None:
    assert visible(" a b ") == "␣a b␣"
    assert visible("  ") == "␣␣"
    assert visible("x\ty\r\n") == "x⇥y␍↵"
    assert visible("\x1b[31m\u202e\ud800\x9b") == "⟨U+001B⟩[31m⟨U+202E⟩⟨U+D800⟩⟨U+009B⟩"
    assert visible("👩\u200d👧 é مرحبا") == "👩\u200d👧 é مرحبا"
    assert tame("a \n\x07") == "a \n⟨U+0007⟩"


def test_styles_show_sign_and_strength() -> None:
    liked, blamed = token_style(1.0, 1.0), token_style(-1.0, 1.0)
    assert liked.bgcolor != blamed.bgcolor
    assert blamed.underline
    assert not liked.underline
    assert token_style(0.5, 1.0).bgcolor not in (None, liked.bgcolor)
    assert token_style(0.01, 1.0).bgcolor is None
    assert token_style(0.0, 0.0).bgcolor is None


def test_the_text_is_as_written_with_the_end_by_name() -> None:
    tokens = ["A", " film", "\n", " !"]
    text = colored_tokens(record(tokens, [0.1, -0.2, 0.0, 0.0, 0.3]), 0.3)
    assert text.plain == "A film↵\n ! </s>"


def test_bytes_of_one_character_are_shown_once() -> None:
    shared = record(["🎬"], [0.1, 0.1, 0.3])
    shared["tokens"], shared["offsets"] = ["🎬", "🎬", "</s>"], [[0, 1], [0, 1], [1, 1]]
    assert colored_tokens(shared, 0.3).plain == "🎬 </s>"


@pytest.mark.parametrize("color", [False, True])
def test_no_control_sequence_of_the_data_reaches_the_terminal(color: bool) -> None:
    side = record(["A", "\x1b[2J[bold]x[/bold]"], [0.1, -0.2, 0.3])
    row = {"row": 0, "prompt": side["prompt"], "responses": {"chosen": side}, "margin": -0.1}
    for output in (
        printed(show_response, side, color=color),
        printed(show_rows, [row], 0.1, color=color),
    ):
        assert "\x1b[2J" not in output
        assert "\x1b]0" not in output
        assert "⟨U+001B⟩[2J[bold]x[/bold]" in output
        assert "-0.2" in output or "blamed" in output


def test_the_table_names_every_number() -> None:
    output = printed(show_response, record(["A", " film"], [0.1, -0.2, 0.3]))
    assert "nats × beta (0.1)" in output
    for cell in ("␣film", "-0.200", "-0.100", "+0.200", "+0.30"):
        assert cell in output
