"""The page of `tokenq reproduce displacement`."""

import re
from collections.abc import Iterable
from typing import Any

from tokenq.reproduce.findings import findings_table
from tokenq.reproduce.mass_displacement.analysis import LEVEL
from tokenq.reproduce.mass_displacement.answers import ANSWERS, EVASIONS, KINDS, QUESTION, WORDS
from tokenq.reproduce.mass_displacement.arms import FILTERS, OBJECTIVE_ARMS
from tokenq.reproduce.mass_displacement.figure import NAMES
from tokenq.reproduce.mass_displacement.predictors import PREDICTORS
from tokenq.reproduce.mass_displacement.settings import LEVELS, MARGINS
from tokenq.reproduce.mass_displacement.training import SAMPLED_PROMPTS, SAMPLES
from tokenq.reproduce.statistics import Estimate, estimate, shown


def page(results: dict[str, Any]) -> str:
    """What was done, what came out, what was expected."""
    settings, seeds = results["settings"], results["seeds"]
    start = {
        name: shown(estimate([one["start"][name] for one in results["starts"]]))
        for name in ("right", "opposite", "accuracy")
    }
    near, other = (settings["near"], settings["opposite"] + settings["evasive"])
    exact = results["exact"]
    falls = ", ".join(f"{100 * share:.0f} % at {c}" for c, share in exact["falls"].items())
    yes, no = (", ".join(f"*{answer}*" for answer in ANSWERS[m]) for m in ("yes", "no"))
    question = " / ".join(QUESTION.splitlines())
    return f"""
<!-- --8<-- [start:measured] -->
`{settings["model"]}` is asked whether the writer of a film sentence liked the film; people's
ratings of the sentence are the truth. It is tuned on right answers first, then the last
{settings["layers"]} layers are trained (LoRA). The chosen answer of a pair is always right. The
rejected one says the same in other words (*near-duplicate*), the contrary (*opposite*), or neither
(*evasive*). {len(seeds)} seeds, 95 % intervals over seeds. After tuning, on {settings["held_out"]}
held-out questions, words that begin right answers have a mass of {start["right"]}, those of
opposite answers {start["opposite"]}; the former is larger on {start["accuracy"]} of the questions.

**One pair at a time** ({near} near-duplicates and {other} others a seed; DPO, beta
{settings["beta"]:g}, AdamW): what had changed when the margin, log pi(y+)/pi(y-), had grown by so
many nats.

{_single_table(results["single"])}

The first token that gained most is a word of the opposite meaning in
{_percent(results["gainers"]["near"]["opposite"])} of the near-duplicates,
{_percent(results["gainers"]["opposite"]["opposite"])} of the opposite and
{_percent(results["gainers"]["evasive"]["opposite"])} of the evasive pairs.

**What tells it before training**: Spearman correlations within a seed, at {LEVEL:g} nats.

{_correlation_table(results["correlations"])}

**A data set of {settings["prompts"]} pairs, half of them near-duplicates**, {settings["steps"]}
steps of {settings["batch_size"]}; changes on held-out questions since the start.

{_end_table(results["end"])}

*Said yes*: share of the pairs trained on whose right answer is yes.

What they write then (temperature 1, {SAMPLES} samples for each of {SAMPLED_PROMPTS} held-out
questions), by first word and verb; *contradictory*: "Yes, the writer disliked ...".

{_written_table(results["written"])}

**Objectives at equal margin**: where the mean held-out margin, in nats without beta, first reaches
each level; *seeds*: how many runs got there.

{_margin_table(results["at margin"], OBJECTIVE_ARMS)}

**Filters at equal margin** of held-out near-duplicates:

{_margin_table(results["filters at margin"]["near"], FILTERS)}

and of the other held-out pairs:

{_margin_table(results["filters at margin"]["distinct"], FILTERS)}

{findings_table(results["findings"])}

{_not_judged(results["not judged"])}

**Exact companion** (float64, {exact["cases"]} random softmax models): the first-order change of
log pi(y+) that `tokenq.monitor` computes from products of head gradients differs from the measured
one by at most {exact["head"]:.0e} of its size, the one of a single token from output embeddings by
at most {exact["fork"]:.0e}. In the latter the chosen token becomes *less* likely while the margin
grows, by cosine of the two tokens' embeddings: {falls}.
<!-- --8<-- [end:measured] -->

Question: `{question}` (lines end at `/`). Answers, the first of each the most usual: {yes}; {no};
evasive:
{", ".join(f"*{answer}*" for answer in EVASIONS)}. Words that begin answers of a meaning:
{"; ".join(f"{meaning}: {', '.join(words)}" for meaning, words in WORDS.items())}. The
question, answers and rates were settled in trials of one seed; lists, levels and margins stood
before the runs reported here. After the first seed had shown that the lowest CHES favours one
answer, that DPOP with its published weight hardly moves here and that policies come to contradict
themselves, *DPO, CHES-filtered, balanced*, *DPOP, lambda 5*, the control *likely chosen*, the
filters' comparison at a margin of near-duplicates and the reading of samples were added.

Predictors: {"; ".join(f"*{name}*, {text}" for name, text in PREDICTORS.items())}.

Objectives have the defaults of `tokenq.objectives`, which are their papers'; in *DPOP, lambda 5*
beta is 0.1, in *cDPO* label smoothing is 0.1, *NLL* has weight 1 a token.

## Limits

One small model, a closed set of thirteen answers, trained by adapters in its last layers; all seeds
share questions, so that intervals speak of pairs, orders and first weights, not of other questions.
The tuned start spreads over several right answers, so a chosen answer has room to become likelier,
which an answer that is nearly certain has not. A pair's CHES without length normalisation is
dominated by which of the two answers is longer. The filter keeps half of the pairs; the paper keeps
few. Runs on half of the pairs see each of them twice as often. Mass is counted on first tokens
alone; what a policy says later shows in what it writes.
"""


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _cell(value: Estimate | None, digits: int = 2) -> str:
    return "—" if value is None else shown(value, digits)


def _single_table(single: dict[str, Any]) -> str:
    head = (
        "| rejected | margin | pairs there | log pi(y+) | chosen fell | right words | "
        "opposite words | opposite grew |"
    )
    rows = [head, "|---|---|---|---|---|---|---|---|"]
    for kind in KINDS:
        for level in LEVELS:
            one = single[kind][f"{level:g}"]
            cells = [
                _cell(one.get(key))
                for key in ("chosen", "falls", "right", "opposite", "opposite grows")
            ]
            reached = _percent(one["reached"])
            rows.append(f"| {NAMES[kind]} | {level:g} | {reached} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _correlation_table(correlations: dict[str, Any]) -> str:
    rows = [
        "| | fall of y+, all pairs | fall, near-duplicates | gain of opposite words, all pairs | "
        "gain, near-duplicates |",
        "|---|---|---|---|---|",
    ]
    for name in PREDICTORS:
        cells = [
            "none" if (value := correlations[which][name][what]) is None else shown(value, 2)
            for what in ("fall", "opposite")
            for which in ("all", "near")
        ]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _end_table(end: dict[str, Any]) -> str:
    rows = [
        "| trained on | pairs | near-duplicates | said yes | opposite words | right words | "
        "accuracy | log pi(y+), near | log pi(y+), opposite | margin, near | margin, opposite | "
        "margin, evasive |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in end.items():
        values = [one["opposite"], one["right"], one["accuracy"]]
        values += [one["chosen"][kind] for kind in ("near", "opposite")]
        values += [one["margin"][kind] for kind in KINDS]
        cells = " | ".join(shown(value, 2) for value in values)
        kept = f"{one['pairs']} | {one['near']['mean']:.0f} | {_percent(one['yes']['mean'])}"
        rows.append(f"| {name} | {kept} | {cells} |")
    return "\n".join(rows)


def _written_table(written: dict[str, Any]) -> str:
    rows = [
        f"| | {' | '.join(_SAID)} | most common texts of seed 0 |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in written.items():
        cells = " | ".join(shown(one[key], 2) for key in _SAID)
        texts = "; ".join(f"*{_inline(text)}* {_percent(share)}" for text, share in one["texts"])
        rows.append(f"| {name} | {cells} | {texts} |")
    return "\n".join(rows)


_SAID = ("right", "opposite", "contradictory", "other")


def _inline(text: str) -> str:
    """A sample as a table shows it: its beginning, without Markdown's own characters."""
    plain = " ".join(re.sub(r"[|*`<>\[\]_]", " ", text).split()) or "nothing"
    return plain if len(plain) <= 60 else f"{plain[:60].rstrip()} ..."


def _not_judged(names: list[str]) -> str:
    if not names:
        return "Every objective reached that margin in every seed."
    return f"Not judged, since not every seed reached that margin: {', '.join(names)}."


def _margin_table(found: dict[str, Any], names: Iterable[str]) -> str:
    titles = [f"{what} at {m:g}" for what in ("log pi(y+)", "opposite words") for m in MARGINS]
    seeds = ", ".join(f"{margin:g}" for margin in MARGINS)
    rows = [f"| | seeds at {seeds} | {' | '.join(titles)} |", "|---" * (2 + len(titles)) + "|"]
    for name in names:
        own = [found[name][f"{margin:g}"] for margin in MARGINS]
        cells = [_cell(one.get(key)) for key in ("chosen", "opposite") for one in own]
        reached = ", ".join(str(one["reached"]) for one in own)
        rows.append(f"| {name} | {reached} | {' | '.join(cells)} |")
    return "\n".join(rows)
