"""A run in the terminal: the whole view, and lines on what is new."""

import io
from dataclasses import replace

import pytest
from histories import KINDS, cut, made_history, made_logs
from rich.console import Console

from tokenq.monitor.decision import decide
from tokenq.monitor.findings.rules import findings
from tokenq.monitor.readings import History
from tokenq.report.monitor_numbers import amount
from tokenq.report.monitor_terminal import VERDICTS, monitor_view, news, show_run, sparkline

STEPS = (0, 40, 80, 120)


def printed(history: History, width: int = 100) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    show_run(console, history)
    return console.export_text()


@pytest.fixture(scope="module")
def history() -> History:
    return made_history("displacement", steps=STEPS, pairs=16)


def test_the_view_says_verdict_measures_and_findings(history: History) -> None:
    text = printed(history)
    assert "step 120 · probes 4 · pairs 16 held out, 16 trained on" in text
    assert VERDICTS[decide(history).verdict] in text
    found = findings(history)
    assert found
    for each in found:
        assert each.severity.upper() in text
        assert f"since step {each.since}" in text
    places = [text.index(each.severity.upper()) for each in found]
    assert places == sorted(places)
    [line] = [line for line in text.splitlines() if line.startswith("chosen reward")]
    assert (
        amount(
            history.readings[-1].pairs.logps[0, :, :16].sum(0).mean() * 0.1
            - history.setup.baseline.ref_logps[0, :, :16].sum(0).mean() * 0.1
        )
        in line
    )
    assert "█" in line


@pytest.mark.parametrize("width", [40, 80, 200])
def test_it_fits_the_terminal(history: History, width: int) -> None:
    assert max(map(len, printed(history, width).splitlines())) <= width


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_of_run_is_shown(kind: str) -> None:
    assert "expected or harmful?" in printed(made_history(kind, steps=(0, 100, 200), pairs=6))
    assert "log lines" in printed(made_logs(kind))


def test_texts_of_markup_are_shown_as_they_are(history: History) -> None:
    assert history.setup is not None
    setup = replace(history.setup, policy="[bold]x[/bold]")
    assert monitor_view(replace(history, setup=setup)) is not None


def test_only_what_is_new_is_told(history: History) -> None:
    first = cut(history, 40)
    lines = [text.plain for text in news(None, first)]
    assert [line.split()[1] for line in lines if line.startswith("step")] == ["0", "40"]
    assert list(news(first, first)) == []
    later = [text.plain for text in news(first, history)]
    assert [line.split()[1] for line in later if line.startswith("step")] == ["80", "120"]
    told = {each.name for each in findings(first)}
    for each in findings(history):
        if each.name not in told:
            assert any(each.title in line for line in later)


def test_new_log_lines_are_told_where_there_are_no_probes() -> None:
    logs = made_logs("healthy")
    half = cut(logs, logs.logs[9]["step"])
    lines = [text.plain for text in news(half, logs)]
    assert lines[0].startswith(f"step {logs.logs[-1]['step']:>6}")
    assert "chosen reward" in lines[0]


def test_sparklines() -> None:
    assert sparkline([0, 1, 2, 7]) == "▁▂▃█"
    assert sparkline([3, 3]) == "▄▄"
    assert sparkline([]) == ""
    assert len(sparkline(list(range(100)))) == 16
    assert sparkline(list(range(100)))[-1] == "█"


def test_a_run_that_was_only_set_up_has_no_news() -> None:
    made = made_history("healthy")
    assert list(news(None, replace(made, readings=[], logs=[]))) == []
