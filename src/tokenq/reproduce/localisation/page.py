"""The page of `tokenq reproduce credit`: tables, and what holds and what does not."""

from collections.abc import Sequence
from typing import Any

from tokenq.credit.estimators import ESTIMATORS
from tokenq.reproduce.findings import Finding, judged
from tokenq.reproduce.localisation.analysis import ENSEMBLE, PLAIN
from tokenq.reproduce.localisation.arms import (
    ARMS,
    COIN,
    DPO,
    PLANTED_ARMS,
    REWARD_MODEL,
    SFT,
    SIZE_ARMS,
)
from tokenq.reproduce.localisation.measures import NEGATIVES, RATE
from tokenq.reproduce.localisation.reading import (
    HEADLINE,
    WITHOUT_SIGNALS,
    Row,
    entry,
    headline_rows,
)
from tokenq.reproduce.localisation.tables import START
from tokenq.reproduce.statistics import Estimate, shown

_TITLES = {
    "film": "Film reviews: words with a human valence",
    "planted": "Package summaries with one planted wrong detail",
    "summedits": "Summaries edited by people (SummEdits)",
    "qa": "Long answers with spans marked by people (QA-Feedback)",
    "surface": "Whole rewards under a change of the surface",
    "tabular": "Token MDPs whose exact advantage is known",
}
_ABOUT = {
    "film": "Trained on which of two review sentences people rated higher. Truth: what ten people "
    "said each word of a lexicon is worth, which training never saw.",
    "planted": "Trained on which of two one-line summaries of a software package is right; they "
    "differ in one detail. Truth: where the wrong detail was planted, in packages of other "
    "sources. The same package's own summary, a paraphrase of it and a harmless edit of it show "
    "what is flagged without reason.",
    "summedits": "Trained on original over inconsistently edited summaries of some documents, "
    "tested on other documents. Truth: the differing characters; consistent edits are negatives.",
    "qa": "Trained on people's comparisons of whole answers to some questions, tested on answers "
    "to other questions. Truth: the spans that people marked as wrong, of all kinds.",
    "surface": "Trained on film review pairs as they are. Of held-out pairs the better text is "
    "changed in a way that leaves its words alone, and compared with the worse one as it is: a "
    "reward that keys on surface tokens changes its mind.",
    "tabular": "Responses of token MDPs that are solved exactly earn a little at every token and "
    "lose much at a few wrong ones; labels are of whole responses, drawn by Bradley-Terry. No "
    "language model is involved.",
}


def page(results: dict[str, Any]) -> str:
    """Markdown; parts between markers are shown in the documentation too."""
    parts = [_what_was_done(results), "## What holds", *_marked("findings", _findings(results))]
    parts += ["## Estimators, side by side", *_marked("estimators", _estimators(results))]
    for name, task in results["tasks"].items():
        parts.append(f"## {_TITLES[name]}\n\n{_ABOUT[name]}")
        parts += _PARTS.get(name, _error_parts)(name, task)
    return "\n\n".join(parts)


def _marked(name: str, text: str) -> list[str]:
    """A part that documents take in by its name."""
    return [f"<!-- --8<-- [start:{name}] -->", text, f"<!-- --8<-- [end:{name}] -->"]


def _what_was_done(results: dict[str, Any]) -> str:
    if not results["settings"]:
        return "Token MDPs only."
    known = next(iter(results["settings"].values()))
    missing = (
        f" Left out for want of data: {', '.join(results['missing'])}."
        if results["missing"]
        else ""
    )
    return (
        f"{known['model']}, LoRA on the linear layers of its last {known['layers']} decoder "
        f"layers, all else frozen; {len(results['seeds'])} seeds, which draw training pairs, their "
        "order and the first weights. Training sees one label for each pair of whole responses. "
        "Scores are such that higher means more suspicious: credit enters with its sign turned. "
        "Tokens without a visible character (the end token, line breaks) are left out of all "
        "token metrics. The texts are the same for all seeds; a number is the mean over seeds with "
        f"its 95 % interval by bootstrap ({results['resamples']} resamples) over groups of texts "
        "(a package's source, a document, a question). It says how the number depends on the texts "
        "drawn; in round brackets, the least and greatest of the seeds say how it depends on "
        f"training.{missing}"
    )


# ---- findings ----


def _columns(results: dict[str, Any]) -> list[tuple[str, str]]:
    """(task, measure) of the tables that stand tasks side by side."""
    return [
        (name, measure)
        for name in results["tasks"]
        if name not in WITHOUT_SIGNALS
        for measure in (("Spearman",) if name == "film" else ("AUROC within", "AP within"))
    ]


def _findings(results: dict[str, Any]) -> str:
    """What is expected of plain credit, and of what shall improve it, by task and measure."""
    columns = _columns(results)
    rows: dict[str, dict[tuple[str, str], Finding]] = {}
    for name, measure in columns:
        for found in _task_findings(results["tasks"][name], measure):
            rows.setdefault(found["claim"], {})[name, measure] = found
    lines = [
        [claim, *(_verdict(own.get(column)) for column in columns)] for claim, own in rows.items()
    ]
    note = (
        "Differences of the measure with their intervals: above 0 an expectation holds (+), below "
        "it does not (−), all others are undecided (?). There are many of them: about one in "
        "twenty would look decided by chance."
    )
    head = ["expected", *(f"{name}, {measure}" for name, measure in columns)]
    return f"{note}\n\n{_table(head, lines)}"


def _verdict(found: Finding | None) -> str:
    if found is None:
        return ""
    mark = {"holds": "+", "does not hold": "−", "undecided": "?"}[found["verdict"]]
    value = found["value"]
    text = f"{mark} {value['mean']:+.3f}"
    if value["low"] is not None and value["high"] is not None:
        text += f" [{value['low']:+.3f}, {value['high']:+.3f}]"
    return text


def _estimators(results: dict[str, Any]) -> str:
    """Every estimator of DPO credit, as it is and above the plain one, on every task."""
    columns = _columns(results)
    tasks = {name: results["tasks"][name] for name, _ in columns}
    lines = []
    signals = [(DPO.name, name) for name in ESTIMATORS]
    for arm, signal in [*signals, *((ENSEMBLE, name) for name in ESTIMATORS)]:
        entries = {name: entry(task, arm, signal) for name, task in tasks.items()}
        if not any(entries.values()):
            continue
        cells = []
        for name, measure in columns:
            found = entries[name]
            less = found.get("less plain dpo", {}).get(measure) if found else None
            own = found["measures"][measure] if found else None
            cells.append(_interval(own) if less is None else _interval(less, sign=True))
        lines.append([f"{arm}: {signal.replace('_', ' ')}", *cells])
    head = ["estimator", *(f"{name}, {measure}" for name, measure in columns)]
    note = (
        "The first row is the plain credit of DPO; the others are what they are above it on the "
        "same texts, with the interval of the difference."
    )
    return f"{note}\n\n" + _table(head, lines)


_LESS_THAN_PLAIN = (
    ("credit of labels by coin", COIN, PLAIN),
    ("the surprisal of the untrained model", START, "surprisal"),
    ("the surprisal of the SFT model", SFT, "surprisal"),
    ("the surprisal of the DPO policy", DPO.name, "surprisal"),
    ("the contrast SFT / base", SFT, PLAIN),
    ("prompt information of the untrained model", START, "prompt information"),
    ("whether the prompt holds the word", START, "not in the prompt"),
    ("gradient x input of the log-ratio", DPO.name, "gradient x input"),
    ("prefix differences of a reward model", REWARD_MODEL, "prefix difference"),
)
_MORE_THAN_PLAIN = (
    ("credit summed over words", DPO.name, "words"),
    ("standardised credit", DPO.name, "standardised"),
    ("standardised credit summed over words", DPO.name, "standardised_words"),
    ("credit averaged over seeds", ENSEMBLE, PLAIN),
    ("the same, standardised and summed over words", ENSEMBLE, "standardised_words"),
)


def _task_findings(task: dict[str, Any], measure: str) -> list[Finding]:
    plain = entry(task, DPO.name, PLAIN)
    if plain is None:
        return []
    own = plain["measures"]
    expected: list[tuple[str, dict[str, Any], float]] = []
    if measure in ("AUROC within", "Spearman"):
        chance = 0.5 if measure == "AUROC within" else 0.0
        expected.append(("plain DPO credit tells more than chance", own[measure], chance))
    for other, arm, signal in _LESS_THAN_PLAIN:
        found = entry(task, arm, signal)
        if found is not None:
            less = _turned(found["less plain dpo"][measure])
            expected.append((f"it tells more than {other}", less, 0.0))
    for other, arm, signal in _MORE_THAN_PLAIN:
        found = entry(task, arm, signal)
        if found is not None:
            more = found["less plain dpo"][measure]
            expected.append((f"{other} tells more than plain", more, 0.0))
    edit = "error told from consistent edit, at the edit"
    if edit in own and measure == "AUROC within":
        expected.append(("an error is blamed more than a harmless edit (AUROC)", own[edit], 0.5))
    return [
        judged(claim, measure, _above(value, threshold))
        for claim, value, threshold in expected
        if value["value"] is not None
    ]


def _turned(found: dict[str, Any]) -> dict[str, Any]:
    """The same difference the other way round."""
    value, low, high = (
        None if found[name] is None else -found[name] for name in ("value", "high", "low")
    )
    return {**found, "value": value, "low": low, "high": high}


def _above(found: dict[str, Any], threshold: float) -> Estimate:
    low, high = (None if found[end] is None else found[end] - threshold for end in ("low", "high"))
    mean = found["value"] - threshold
    return {"mean": mean, "low": low, "high": high, "n": len(found["by_seed"])}


# ---- tables ----


def _words_parts(_name: str, task: dict[str, Any]) -> list[str]:
    columns = ("Spearman", "AUROC", "Spearman, unseen words", "AUROC, unseen words")
    note = (
        f"{task['texts']} texts, {task['words']} rated words in {task['places']} places. Spearman: "
        "of words, mean score over places; AUROC: of places, negative against positive words. "
        "Unseen: words that are in no training pair of the seed."
    )
    return [note, _signal_table(headline_rows(task, "Spearman"), columns), _sizes(task, "Spearman")]


def _error_parts(name: str, task: dict[str, Any]) -> list[str]:
    measure, _ = HEADLINE["errors"]
    kinds = ", ".join(f"{count} {kind}" for kind, count in task["kinds"].items())
    columns = (measure, "AP within", "AUROC", "AP", "top-1", "F1", "IoU")
    parts = [
        f"Texts: {kinds}. *Within*: in each text, then the mean; the others pool the tokens of all "
        "texts. Top-1: the highest score is on a wrong token. F1 and IoU of flagged tokens at the "
        "threshold that is best on the other half of the texts.",
        _signal_table(headline_rows(task, measure), columns),
        _choice(task),
        _false_alarms(task),
        _accuracy(task),
    ]
    if name == "planted":
        parts.append(_kinds(task))
    return [part for part in parts if part]


def _surface_parts(_name: str, task: dict[str, Any]) -> list[str]:
    arms = list(task)
    kinds = list(task[arms[0]]["accuracy"])
    head = ["better text", *(f"{arm}: pairs ordered" for arm in arms)]
    head += [f"{arm}: above unchanged" for arm in arms]
    head += [f"{arm}: change, of a margin" for arm in arms]
    lines = []
    for kind in kinds:
        shifts = [task[arm]["shift"].get(kind) for arm in arms]
        lines.append(
            [
                "as it is" if kind == "chosen" else kind.replace("_", " "),
                *(_interval(task[arm]["accuracy"].get(kind)) for arm in arms),
                *(_interval(task[arm]["less unchanged"].get(kind), sign=True) for arm in arms),
                *(f"{each['mean']:+.2f} ({each['size']:.2f})" if each else "" for each in shifts),
            ]
        )
    note = (
        "Pairs ordered: share whose better text, so changed, has the higher reward, of the pairs "
        "that the change changes; above unchanged: less the share of the same pairs as they are. "
        "Change: mean "
        "change of that text's reward, and in brackets its mean size, as a multiple of the mean "
        "size of the difference between the two texts of a pair."
    )
    return [note, _table(head, lines)]


def _tabular_parts(_name: str, task: dict[str, Any]) -> list[str]:
    head = ["signal", "with the exact advantage", "with the token's reward", "AUROC, wrong tokens"]
    lines = [_tabular_row(f"({name}, exact)", own) for name, own in task["truth"].items()]
    lines += [_tabular_row(f"({name})", own) for name, own in task["controls"].items()]
    for objective, counts in task["arms"].items():
        # The other objectives: with most labels, and with the expected loss.
        for count in list(counts)[0 if objective == DPO.name else -2 :]:
            labels = "expected loss" if count == "exact" else f"{count} pairs"
            lines += [
                _tabular_row(f"{objective}, {labels}: {signal}", own)
                for signal, own in counts[count].items()
            ]
    note = (
        f"{task['worlds']} MDPs; {task['wrong']:.2f} of the tokens that the reference says are "
        "wrong. Correlations over the tokens of all states, as often as the reference takes them, "
        "mean and 95 % Student-t interval over MDPs. What training on preferences can determine is "
        "the advantage; that a wrong token has a low one is the reward's doing, not the method's."
    )
    return [note, _table(head, lines)]


def _tabular_row(title: str, own: dict[str, Any]) -> list[str]:
    measures = (own.get(name) for name in ("advantage", "reward", "wrong"))
    return [title, *("" if each is None else shown(each) for each in measures)]


def _signal_table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """The first column is the measure by which the rows are ordered."""
    measure = columns[0]
    head = ["signal", *columns, f"{measure}, less plain DPO"]
    lines = []
    for row in rows:
        measures = row.entry["measures"]
        first, *others = (measures.get(column) for column in columns)
        less = row.entry.get("less plain dpo", {}).get(measure)
        title = f"**{row.title}**" if (row.arm, row.signal) == (DPO.name, PLAIN) else row.title
        lines.append(
            [
                title,
                _interval(first, seeds=True),
                *(_interval(each) for each in others),
                _interval(less, sign=True),
            ]
        )
    return _table(head, lines)


def _choice(task: dict[str, Any]) -> str:
    if not task["chosen"]:
        return ""
    lines = [
        [
            f"half {number}",
            f"{each['arm']}, {each['signal']}",
            _interval(each["less plain dpo"], sign=True),
        ]
        for number, each in enumerate(task["chosen"], start=1)
    ]
    note = (
        "**A better estimator, chosen without looking.** Of all estimators and all objectives "
        "trained on the true labels, the one with the best AP within a text on one half of the "
        "texts, judged on the other half. The estimators themselves need no label of a token; this "
        "choice uses those of one half:"
    )
    return f"{note}\n\n" + _table(
        ["judged on", "chosen on the other half", "AP above plain"], lines
    )


_CREDIT = (
    ("plain DPO credit", DPO.name, PLAIN),
    ("standardised DPO credit", DPO.name, "standardised"),
)
_CONTROLS = (
    ("surprisal, base", START, "surprisal"),
    ("surprisal, DPO policy", DPO.name, "surprisal"),
    ("reward model", REWARD_MODEL, "prefix difference"),
    ("word not in the prompt", START, "not in the prompt"),
)


def _false_alarms(task: dict[str, Any]) -> str:
    kinds = [kind for kind in NEGATIVES if kind in task["kinds"]]
    columns = [
        "detected at 10 %",
        *(f"false positives, {kind}" for kind in kinds),
        *(f"error told from {kind}" for kind in kinds),
        "error told from consistent edit, at the edit",
    ]
    lines = []
    for title, arm, signal in (*_CREDIT, *_CONTROLS):
        found = entry(task, arm, signal)
        if found and columns[0] in found["measures"]:
            lines.append([title, *(_interval(found["measures"].get(name)) for name in columns)])
    if not lines:
        return ""
    note = (
        "**False alarms.** A threshold that flags something in at most "
        f"{100 * RATE:g} % of the true texts of one half (split conformal), used on the other "
        "half: share of texts with anything flagged. Several texts of one group are not "
        "exchangeable with others, so that the rate is approximate where groups are few. Then, "
        "without a threshold, the probability "
        "that the largest score of an erroneous text is above that of a true one; and that a "
        "token of an error scores above a token of a harmless edit."
    )
    return f"{note}\n\n" + _table(["signal", *columns], lines)


def _accuracy(task: dict[str, Any]) -> str:
    arms = [name for name in task["accuracy"] if name in (START, *_arm_names(task))]
    columns: dict[str, None] = {}
    for arm in arms:
        for found in task["accuracy"][arm].values():
            columns |= dict.fromkeys(found)
    if not columns:
        return ""
    lines = []
    for arm in arms:
        for signal, found in task["accuracy"][arm].items():
            if arm not in (START, DPO.name) and signal == "surprisal":
                continue
            title = {PLAIN: "implicit reward", "surprisal": "log-likelihood"}.get(signal, "reward")
            lines.append([f"{arm}, {title}", *(_interval(found.get(name)) for name in columns)])
    note = (
        "**Whole texts, and paraphrases.** Share of erroneous texts that are ranked below the true "
        "one by the summed score, where the true one is as written, reworded, or harmlessly "
        "edited. A score that knew the detail would not mind the wording."
    )
    return f"{note}\n\n" + _table(["score", *columns], lines)


def _kinds(task: dict[str, Any]) -> str:
    planted = [(f"{arm.name}, plain", arm.name, PLAIN) for arm in PLANTED_ARMS]
    kinds = list(next(iter(next(iter(task["by kind"].values())).values())))
    lines = []
    for title, arm, signal in (*_CREDIT, *planted, *_CONTROLS):
        found = task["by kind"].get(arm, {}).get(signal)
        if found:
            lines.append([title, *(_interval(found[kind]) for kind in kinds)])
    note = (
        "**By kind of error**, AUROC within a text. Runs that saw two kinds only show whether "
        "credit carries over to kinds that training did not see."
    )
    return f"{note}\n\n" + _table(["signal", *kinds], lines)


def _sizes(task: dict[str, Any], measure: str) -> str:
    lines = []
    for arm in sorted((*SIZE_ARMS, DPO), key=lambda arm: arm.share):
        found = entry(task, arm.name, PLAIN)
        if found is not None:
            other = entry(task, arm.name, "standardised")
            lines.append(
                [
                    str(task["pairs"][arm.name]),
                    _interval(found["measures"][measure], seeds=True),
                    _interval(other["measures"][measure] if other else None),
                ]
            )
    if len(lines) < 2:
        return ""
    return f"**By number of training pairs**, {measure}.\n\n" + _table(
        ["pairs", "plain DPO credit", "standardised"], lines
    )


_PARTS = {"film": _words_parts, "surface": _surface_parts, "tabular": _tabular_parts}


def _arm_names(task: dict[str, Any]) -> list[str]:
    known = {arm.name for arms in ARMS.values() for arm in arms}
    sizes = {arm.name for arm in SIZE_ARMS}
    return [name for name in task["pairs"] if name in known - sizes]


def _interval(found: dict[str, Any] | None, *, sign: bool = False, seeds: bool = False) -> str:
    if found is None or found["value"] is None:
        return ""
    form = "+.3f" if sign else ".3f"
    text = format(found["value"], form)
    if found["low"] is not None:
        text += f" [{found['low']:{form}}, {found['high']:{form}}]"
    if seeds and len(set(found["by_seed"])) > 1:
        text += f" ({min(found['by_seed']):.3f}–{max(found['by_seed']):.3f})"
    return text


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
