"""Responses that a search found, in the terminal: ranked, coloured, and while they grow."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from tokenq.report.terminal import color_scale, colored_tokens, legend, prompt_text
from tokenq.report.visible import tame

_SHARES = ("finish_eos", "finish_stop", "finish_length")


def show_found(console: Console, record: dict[str, Any], beta: float) -> None:
    """Print one line of `search.jsonl`: the prompt, and the responses best first."""
    responses = record["responses"]
    scored = [each for each in responses if "rewards" in each]
    scale = color_scale(scored)
    console.print(Rule(Text(f"row {record['row']}"), style="dim"))
    console.print(Text(prompt_text(record["prompt"]), style="dim"))
    for rank, each in enumerate(responses, start=1):
        console.print(_head(rank, each))
        text = colored_tokens(each, scale) if "rewards" in each else Text(tame(each["text"]))
        console.print(Padding(text, (0, 0, 0, 4)))
    if scored:
        console.print(legend(scale, beta))


def show_summary(console: Console, summary: dict[str, Any]) -> None:
    """Print what a run found, in a line or two."""
    console.print(
        f"\n{summary['prompts']} prompts, {summary['responses']} responses, "
        f"{summary['tokens']} tokens",
        end="",
    )
    rate = summary.get("search/tokens_per_second")
    console.print("" if rate is None else f", {rate:.1f} tokens a second")
    table = Table(box=None, pad_edge=False, header_style="dim")
    cells = []
    for name in ("score", "log_ratio", "kl", "length"):
        if f"search/{name}" in summary:
            table.add_column(name.replace("_", "-"), justify="right")
            cells.append(f"{summary[f'search/{name}']:.2f}")
    for name in _SHARES:
        table.add_column("ends: " + name.removeprefix("finish_"), justify="right")
        cells.append(f"{100 * summary[f'search/{name}']:.0f}%")
    table.add_row(*cells)
    console.print(table)
    console.print("means over the best response to each prompt; nats, tokens", style="dim")
    for reason, count in summary["skipped"].items():
        console.print(f"{count} skipped: {reason}", markup=False)


@contextmanager
def streamed(console: Console, *, shown: bool) -> Iterator[Callable[[Any], None] | None]:
    """Yield what is called with each `tokenq.search.Progress`; it shows the best so far.

    In a terminal the text grows in place; elsewhere every step is a line. Nothing if not `shown`.
    """
    if not shown:
        yield None
    elif console.is_terminal:
        with Live(console=console, transient=True, auto_refresh=False) as live:
            yield lambda progress: live.update(_growing(progress), refresh=True)
    else:
        yield lambda progress: console.print(_growing(progress), soft_wrap=True)


def _growing(progress: Any) -> Text:
    text = Text(f"{progress.step:>4} {progress.score:+9.2f}  ", style="dim")
    text.append(tame(progress.text or "").replace("\n", "↵"), style="not dim")
    return text


def _head(rank: int, response: dict[str, Any]) -> Text:
    head = Text(f"{rank:>2}  {response['score']:+.3f}", style="bold")
    told = []
    if response.get("log_ratio") is not None:
        told.append(f"log-ratio {response['log_ratio']:+.2f}")
    if response.get("kl") is not None:
        told.append(f"KL {response['kl']:.2f}")
    told += [f"{len(response['token_ids'])} tokens", f"ends: {response['finish']}"]
    told += [f"{name} {value:.3g}" for name, value in response.get("details", {}).items()]
    head.append("  " + " · ".join(told), style="not bold dim")
    return head
