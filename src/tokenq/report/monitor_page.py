"""One self-contained HTML page of what the monitor knows of a run; works from `file://`.

The verdict first, then findings, then figures and the texts behind them. All text is escaped by the
template; figures hold none of a data set's. Its own parts are `page/monitor.*`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tokenq.monitor.decision import Decision, Reason, decide
from tokenq.monitor.findings.finding import SEVERITIES, Finding
from tokenq.monitor.findings.rules import findings
from tokenq.monitor.identity import Interval
from tokenq.monitor.measures import MEASURES, Measure
from tokenq.monitor.readings import History
from tokenq.monitor.summary import Values, values
from tokenq.report.html import part
from tokenq.report.monitor_charts import GROUPS, REFERENCE, Chart, Line, charts
from tokenq.report.monitor_figures import drawn
from tokenq.report.monitor_glance import GlanceRow, facts, glance
from tokenq.report.monitor_numbers import amount, bounded, chance, opening, share
from tokenq.report.monitor_terminal import VERDICTS, answer_of
from tokenq.report.monitor_texts import (
    ForkExample,
    GainingToken,
    SampleExample,
    Words,
    fork_examples,
    gaining_tokens,
    sample_examples,
)
from tokenq.storage import write_text

LOGS_ONLY = (
    "Only the trainer’s logs are known of this run. A probe would add what they cannot say: "
    "whether the fall is what the KL identity asks for, where the probability went, and how sure "
    "each number is. Measure the run’s checkpoints with `tokenq monitor RUN_DIR --data PAIRS "
    "--reference MODEL`, or watch the next run with `tokenq.monitor.Monitor`, a callback."
)

MOST_POINTS = 500
"""Of a curve and its table; a run may have logged many times as many."""

_MARKS = {
    "harmful": ("▲", "speaks for harm"),
    "open": ("?", "cannot tell"),
    "expected": ("✓", "speaks against harm"),
    "fact": ("·", ""),
}
"""Of what a test speaks for: a sign, and the same in words; in the order of the page."""

_GROUP_NOTES = {
    "identity": "For responses that the reference itself writes, the mean implicit reward is "
    "−β·KL(reference ‖ policy): it starts at 0 and can only fall as the policy leaves the "
    "reference. A chosen reward that falls no faster than that is the price of learning.",
    "parts": "The objective sees the difference of two answers. What they share cancels in it.",
    "displacement": "At the first token in which the answers of a pair differ, three parties hold "
    "all probability: the chosen token, the rejected one, and all others.",
}


def write_monitor_page(path: Path, history: History, *, tokenizer: Any = None) -> None:
    """Write the page of a run at `path`, whole or not at all.

    tokenizer: of the policy, for tokens and samples as text; without it they are ids
    """
    environment = Environment(
        loader=PackageLoader("tokenq.report", "page"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters |= {"num": amount, "percent": share, "chance": chance, "opening": opening}
    page = environment.get_template("monitor.html").render(
        view=_view(history, Words(tokenizer)),
        css=Markup(part(environment, "page.css") + part(environment, "monitor.css")),
        js=Markup(part(environment, "theme.js") + part(environment, "monitor.js")),
    )
    write_text(path, page)


@dataclass(frozen=True)
class _Figure:
    """A chart as the page sets it.

    axis:    ends of the plotting area and the values there, for the pointer
    spoken:  what a screen reader says of it
    defined: name, short name and definition of each measure
    columns, rows: the table of its values
    """

    chart: Chart
    svg: Markup
    axis: str
    spoken: str
    defined: Sequence[tuple[str, str, str]]
    columns: Sequence[str]
    rows: "Sequence[_Row]"


_Row = tuple[str, Sequence[str | None]]
"""Step or kind of dot, and the cells after it."""


@dataclass(frozen=True)
class _Group:
    name: str
    heading: str
    note: str
    charts: Sequence[_Figure]


@dataclass(frozen=True)
class _View:
    """All that the template sets, in the order of the page."""

    policy: str
    reference: str
    beta: float | None
    facts: Sequence[tuple[str, str]]
    decision: Decision
    verdict: str
    answer: str
    reasons: Sequence[Reason]
    beside: Sequence[Reason]
    findings: Sequence[tuple[Finding, Sequence[tuple[str, str]]]]
    counted: str
    quiet: str
    hint: str
    glance: Sequence[GlanceRow]
    glance_note: str
    once: Sequence[tuple[Measure, str, Interval]]
    groups: Sequence[_Group]
    pairs: int
    step: int
    tokens: Sequence[GainingToken]
    examples: Sequence[ForkExample]
    has_words: bool
    early: int
    late: int
    samples: Sequence[SampleExample]
    definitions: Sequence[Measure]
    marks: Mapping[str, tuple[str, str]]
    settings: Sequence[tuple[str, str]]


def _view(history: History, words: Words) -> _View:
    setup, decision, found = history.setup, decide(history), findings(history)
    decisive = _decisive(decision)
    known = thinned(values(history))
    shown = charts(history, known)
    once = [
        (MEASURES[name], label, known[name][0][1]) for name, label in REFERENCE if name in known
    ]
    early, late, samples = sample_examples(history, words)
    return _View(
        policy=setup.policy if setup else "a run known from its logs",
        reference=setup.reference if setup else "",
        beta=setup.beta if setup else None,
        facts=facts(history),
        decision=decision,
        verdict=VERDICTS[decision.verdict],
        answer=answer_of(decision),
        reasons=decisive,
        beside=[each for each in decision.reasons if each not in decisive],
        findings=[(each, _shown_in(each, shown)) for each in found],
        counted=_counted(found),
        quiet="No rule has found anything in what was measured so far.",
        hint="" if history.readings else LOGS_ONLY,
        glance=glance(history, known),
        once=once,
        glance_note="Means with their 95 % intervals; held-out pairs unless said otherwise."
        if history.readings
        else "As the trainer logged them.",
        groups=_groups(shown),
        pairs=len(setup.probe.pairs) if setup else 0,
        step=history.readings[-1].step if history.readings else 0,
        tokens=gaining_tokens(history, words),
        examples=fork_examples(history, words),
        has_words=words.known,
        early=early,
        late=late,
        samples=samples,
        definitions=_definitions(
            [
                *(name for chart in shown for name in chart.measures),
                *(measure.name for measure, *_ in once),
            ]
        ),
        marks=_MARKS,
        settings=_settings(setup.facts if setup else {}),
    )


def thinned(known: Values, most: int = MOST_POINTS) -> Values:
    """The same with means over neighbouring points where there are more than `most` of a measure.

    Each mean stands at the last step of its window; the first and the last point stay as they are.
    """

    def means(points: Sequence[tuple[int, Interval]]) -> list[tuple[int, Interval]]:
        inner = points[1:-1]
        size = math.ceil(len(inner) / (most - 2))
        windows = [inner[start : start + size] for start in range(0, len(inner), size)]
        kept = [
            (each[-1][0], Interval(sum(value.mean for _, value in each) / len(each), None, None))
            for each in windows
        ]
        return [points[0], *kept, points[-1]]

    return {
        name: points if len(points) <= most else means(points) for name, points in known.items()
    }


def _decisive(decision: Decision) -> list[Reason]:
    """The tests that speak for something, harm first; all of them where none does."""
    order = list(_MARKS)
    told = [reason for reason in decision.reasons if reason.sign != "fact"]
    return sorted(told or decision.reasons, key=lambda reason: order.index(reason.sign))


def _settings(known: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Settings of the run with their names; those of a group behind the group's name."""
    found = []
    for name, value in known.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {each}" for key, each in value.items() if each is not None)
        if value is not None:
            found.append((name.replace("_", " "), str(value)))
    return found


def _counted(found: Sequence[Finding]) -> str:
    """Such as "1 alarm, 2 notes"."""
    counts = {kind: sum(each.severity == kind for each in found) for kind in reversed(SEVERITIES)}
    return ", ".join(
        f"{count} {kind}{'' if count == 1 else 's'}" for kind, count in counts.items() if count
    )


def _shown_in(finding: Finding, shown: Sequence[Chart]) -> list[tuple[str, str]]:
    """Anchor and title of what shows the finding's measures: the chart with most of them first."""
    wanted = set(finding.measures)
    having = [(len(wanted & set(chart.measures)), chart) for chart in shown]
    having.sort(key=lambda item: -item[0])
    places = [(f"figure-{chart.name}", chart.title) for count, chart in having if count][:3]
    if wanted & {name for name, _ in REFERENCE}:
        places.append(("reference", "What was measured once"))
    return places


def _groups(shown: Sequence[Chart]) -> list[_Group]:
    return [
        _Group(name, heading, _GROUP_NOTES.get(name, ""), [_figure(chart) for chart in members])
        for name, heading in GROUPS.items()
        if (members := [chart for chart in shown if chart.group == name])
    ]


def _figure(chart: Chart) -> _Figure:
    picture = drawn(chart)
    axis = (picture.left, picture.right, picture.low, picture.high)
    return _Figure(
        chart,
        Markup(picture.svg),
        " ".join(f"{number:.6g}" for number in axis),
        _spoken(chart),
        [
            (name, name.removeprefix("likelihood/"), MEASURES[name].definition)
            for name in chart.measures
            if name in MEASURES
        ],
        *_table(chart),
    )


def _table(chart: Chart) -> tuple[list[str], list[_Row]]:
    """Column heads, and a row for each step (for each dot where there are no lines)."""
    if not chart.lines:
        dots: list[_Row] = [
            (cloud.label, [amount(x), amount(y)])
            for cloud in chart.clouds
            for x, y in zip(cloud.x, cloud.y, strict=True)
        ]
        return ["", chart.x_label, f"{chart.title}, {chart.unit}"], dots
    known = [dict(line.points) for line in chart.lines]
    steps = sorted({step for points in known for step in points})
    rows: list[_Row] = [
        (str(step), [bounded(points[step]) if step in points else None for points in known])
        for step in steps
    ]
    return ["step", *(line.label for line in chart.lines)], rows


def _spoken(chart: Chart) -> str:
    if not chart.lines:
        dots = sum(len(cloud.x) for cloud in chart.clouds)
        return f"{chart.title}, {chart.unit}, over {chart.x_label}: {dots} dots."
    return f"{chart.title}, {chart.unit}. {' '.join(map(_course, chart.lines))}"


def _course(line: Line) -> str:
    (first, start), (last, end) = line.points[0], line.points[-1]
    return f"{line.label}: {amount(start.mean)} at step {first}, {amount(end.mean)} at step {last}."


def _definitions(names: Sequence[str]) -> list[Measure]:
    return [MEASURES[name] for name in dict.fromkeys(names) if name in MEASURES]
