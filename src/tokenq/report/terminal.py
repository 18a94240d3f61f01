"""Scored responses in the terminal: tokens on a background that shows their implicit reward."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, Group
from rich.padding import Padding
from rich.rule import Rule
from rich.style import Style
from rich.table import Table
from rich.text import Text

from tokenq.report.visible import tame, visible

# From barely to strongly; dark ink is legible on all of them, whatever the terminal's own colours.
_LIKED = ("#d5e8f8", "#96c6ec", "#4fa0dd")
_BLAMED = ("#fde5cf", "#f8bd88", "#f0943f")
_LEVELS = (0.15, 0.4, 0.75)
"""Shares of the scale at which the three shades begin; below the first a token is left plain."""


def show_rows(console: Console, records: Iterable[dict[str, Any]], beta: float) -> None:
    """Print rows of a scored data set, each with its own colour scale."""
    for record in records:
        scale = color_scale(record["responses"].values())
        console.print(Rule(Text(f"row {record['row']}"), style="dim"))
        console.print(Text(prompt_text(record["prompt"]), style="dim"))
        if "margin" in record:
            verdict = "agrees" if record["margin"] > 0 else "disagrees"
            margin = f"margin {record['margin']:+.3f}, {verdict} with the label"
            console.print(Text(margin))
        for name, side in record["responses"].items():
            console.print(_response(name, side, scale))
        console.print(legend(scale, beta))


def show_response(console: Console, record: dict[str, Any]) -> None:
    """Print one response (`Credit.to_dict`): its text in colour, and a table of its tokens."""
    scale = color_scale([record])
    console.print(Text(prompt_text(record["prompt"]), style="dim"))
    console.print(_response("response", record, scale))
    console.print(legend(scale, record["beta"]))
    console.print(_token_table(record, scale))


def color_scale(sides: Iterable[dict[str, Any]]) -> float:
    """The absolute reward at which colours end: the largest of the given responses."""
    return max((abs(reward) for side in sides for reward in side["rewards"]), default=0.0)


def colored_tokens(side: dict[str, Any], scale: float) -> Text:
    """The response as written, each token on its colour; the end token by name."""
    text = Text()
    reached = 0
    for token, (start, end), reward in zip(
        side["tokens"], side["offsets"], side["rewards"], strict=True
    ):
        if start == end:
            text.append(" ")
            text.append(visible(token), style=token_style(reward, scale) + Style(italic=True))
        elif end <= reached:
            continue  # a further byte of a character that is already there
        else:
            shown = tame(token).replace("\n", "↵\n")
            text.append(shown if token.strip(" ") else visible(token), token_style(reward, scale))
            reached = end
    return text


def token_style(reward: float, scale: float) -> Style:
    """Background of a token; blamed ones are underlined too, for who cannot tell the colours."""
    share = abs(reward) / scale if scale else 0.0
    level = sum(share >= each for each in _LEVELS)
    if not level:
        return Style()
    shades = _LIKED if reward > 0 else _BLAMED
    return Style(color="#111111", bgcolor=shades[level - 1], underline=reward < 0)


def legend(scale: float, beta: float) -> Text:
    """One line that explains the colours and their unit."""
    text = Text(f"implicit reward, nats × beta ({beta:g}):  {-scale:+.3g} ", style="dim")
    for shade in reversed(_BLAMED):
        text.append("  ", Style(bgcolor=shade))
    text.append(" blamed · liked ")
    for shade in _LIKED:
        text.append("  ", Style(bgcolor=shade))
    text.append(f" {scale:+.3g}")
    return text


def _response(name: str, side: dict[str, Any], scale: float) -> Group:
    head = Text(f"{name}  {side['reward']:+.3f}", style="bold")
    if side.get("tokens_cut"):
        head.append(f"  ({side['tokens_cut']} tokens cut off)", style="not bold dim")
    return Group(head, Padding(colored_tokens(side, scale), (0, 0, 0, 2)))


def _token_table(record: dict[str, Any], scale: float) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("token")
    estimates = record.get("estimates", {})
    for name in ("log π", "log π ref", "reward", "prefix value", *estimates):
        table.add_column(name, justify="right")
    if "alternatives" in record:
        table.add_column("best alternatives (reward)")
    values = record["values"][1:]
    columns = [record[name] for name in ("tokens", "logps", "ref_logps", "rewards")]
    for i, (token, logp, ref_logp, reward, value) in enumerate(zip(*columns, values, strict=True)):
        cells = [
            Text(visible(token), token_style(reward, scale)),
            *(Text(f"{number:.3f}") for number in (logp, ref_logp)),
            *(Text(f"{number:+.3f}") for number in (reward, value)),
            *(Text(f"{estimate[i]:+.3f}") for estimate in estimates.values()),
        ]
        if "alternatives" in record:
            best = (
                f"{visible(each['token'])} {each['reward']:+.2f}"
                for each in record["alternatives"][i]
            )
            cells.append(Text("  ".join(best), style="dim"))
        table.add_row(*cells)
    return table


def prompt_text(prompt: Any) -> str:
    """A prompt as text, its turns by role."""
    if isinstance(prompt, str):
        return tame(prompt)
    return "\n".join(tame(f"{turn['role']}: {turn['content']}") for turn in prompt)
