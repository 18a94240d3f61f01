"""The demonstration's results in the terminal."""

from rich.columns import Columns
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tokenq.demo.results import Results
from tokenq.demo.words import REWARD, Agreement, Correlation, WordScore
from tokenq.report.terminal import token_style

_NAMED = 12


def show(console: Console, results: Results) -> None:
    """Print both tables, what they say, and the words liked and blamed most."""
    console.print()
    console.print(_pair_table(results))
    console.print(_pair_verdict(results), style="bold")
    console.print()
    console.print(_word_table(results))
    console.print(word_verdict(results.words, "Over all words"), style="bold")
    if results.unseen is not None:
        verdict = word_verdict(results.unseen, "Over words that no training pair holds")
        console.print(verdict, style="bold")
    console.print()
    console.print(_named(results.vocabulary))


def word_verdict(agreement: Agreement, which: str) -> str:
    """One sentence that says whether the implicit reward agrees best with people."""
    own = agreement.spearman[REWARD]
    sentence = f"{which} (n = {agreement.words}) Spearman is {_signed(own.rho)}"
    if own.over_words is not None and own.over_words[0] <= 0 <= own.over_words[1]:
        sentence += ", which may be chance"
    if not agreement.not_beaten:
        return f"{sentence}, further from 0 than every control."
    listed = "; ".join(
        f"{name} ({_signed(agreement.spearman[name].rho)})" for name in agreement.not_beaten
    )
    return f"{sentence}. NOT beaten: {listed}."


def _pair_table(results: Results) -> Table:
    table = Table(title=f"{results.pairs.pairs} held-out pairs", box=None, pad_edge=False)
    table.add_column("the better text is the one with the higher")
    table.add_column("accuracy", justify="right")
    table.add_column("95 %", justify="right")
    for name, found in {**results.pairs.accuracy, **results.texts}.items():
        style = "bold" if name == REWARD else ""
        interval = f"{found.low:.3f} to {found.high:.3f}"
        table.add_row(name, f"{found.value:.3f}", interval, style=style)
    table.add_row("(chance)", "0.500", "", style="dim")
    table.caption = "the reference is the model before training"
    return table


def _pair_verdict(results: Results) -> str:
    controls = {**results.pairs.accuracy, **results.texts}
    own = controls.pop(REWARD)
    better = [name for name, found in controls.items() if found.value >= own.value]
    calibration = results.pairs.calibration
    trust = f"calibration error {calibration.expected_calibration_error:.3f}"
    if not better:
        return f"Implicit reward: {own.value:.3f}, above every control; {trust}."
    listed = "; ".join(f"{name} ({controls[name].value:.3f})" for name in better)
    return f"Implicit reward: {own.value:.3f}; NOT beaten: {listed}; {trust}."


def _word_table(results: Results) -> Table:
    title = f"Spearman with human valence: {results.words.words} words"
    shown = {"all words": results.words}
    if results.unseen is not None:
        title += f", {results.unseen.words} of them in no training pair"
        shown["new words"] = results.unseen
    table = Table(title=title, box=None, pad_edge=False)
    table.caption = (
        f"{results.words.occurrences} places; words with {results.words.min_occurrences} or more; "
        "intervals by bootstrap over words"
    )
    table.add_column("mean over a word's places")
    for name in shown:
        table.add_column(name, justify="right")
        table.add_column("95 %", justify="right")
    for name in results.words.spearman:
        cells = [cell for each in shown.values() for cell in _cells(each.spearman[name])]
        table.add_row(name, *cells, style="bold" if name == REWARD else "")
    return table


def _cells(found: Correlation) -> tuple[str, str]:
    if found.over_words is None:
        return _signed(found.rho), ""
    return _signed(found.rho), f"{found.over_words[0]:+.2f} to {found.over_words[1]:+.2f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}"


def _named(vocabulary: list[WordScore]) -> Columns:
    """The words of highest and lowest reward; a number is the human valence."""
    named = min(_NAMED, len(vocabulary) // 2)
    scale = max(abs(each.signals[REWARD]) for each in vocabulary)
    columns = []
    for title, some in (
        ("most liked (people say)", vocabulary[:named]),
        ("most blamed (people say)", vocabulary[::-1][:named]),
    ):
        table = Table("", "", title=title, box=None, show_header=False, pad_edge=False)
        for each in some:
            word = Text(each.word, token_style(each.signals[REWARD], scale))
            table.add_row(word, f"{each.valence:+.1f}")
        columns.append(table)
    return Columns(columns, padding=(0, 6))
