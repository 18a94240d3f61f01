"""The page of `tokenq reproduce beam`."""

from collections.abc import Mapping, Sequence
from typing import Any

from tokenq.reproduce.beam_decoding.decoding import BEAM
from tokenq.reproduce.beam_decoding.figure import TITLES
from tokenq.reproduce.beam_decoding.measures import JUDGES, LENGTH
from tokenq.reproduce.beam_decoding.policies import REFERENCE
from tokenq.reproduce.beam_decoding.settings import DEBIAN, FILM

_OWN, _REFERENCE = "against own greedy", "against the reference's greedy"


def page(results: Mapping[str, Any]) -> str:
    """Results as Markdown."""
    if "unfinished" in results:
        return f"Pieces of the whole: {', '.join(results['unfinished'])}."
    settings = results["settings"]
    parts = [_intro(settings, results["tasks"])]
    for name, task in results["tasks"].items():
        parts.append(_task(name, task, settings))
    parts.append(_limits(results))
    return "\n\n".join(parts)


def _intro(settings: Mapping[str, Any], tasks: Mapping[str, Any]) -> str:
    preferences, betas = settings["preferences"], settings["betas"]
    return f"""\
Claimed (From r to Q*, arXiv 2404.12358, section 5.2): likelihood search on a DPO policy is search
for its reward, a beam of 5 gains 10 to 15 points of win rate over 1, and with more beams texts grow
and win rates fall. A few beams help any language model, so two controls are decoded alike:
**reference**, the tuned model that all policies start from, and **sft**, that model tuned in as
many steps as DPO takes on the chosen answers alone.

{settings["model"]}, LoRA (rank {preferences["lora_r"]}) on the linear layers of its last
{settings["layers"]} decoder layers, all else frozen; the adapter is merged before decoding.
DPO with beta {", ".join(f"{beta:g}" for beta in sorted(betas))}: {preferences["epochs"]} epoch,
{preferences["batch_size"]} pairs a step, peak learning rate {preferences["learning_rate"]:g}.
A seed draws pairs, order and adapter; the reference is one. Decoded and scored in
{settings["dtype"]}. Beams are those of `transformers` and `tokenq.search.beam_search` with length
penalty 1, without sampling, where nothing else is said; the paper names no length penalty.

Intervals are 95 %, over prompts, all seeds of a prompt drawn together; how much depends on training
is seen in the seeds, which stand in `results.json`. Ties count half."""


def _task(name: str, task: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    own = settings[name]
    text = _film(task, own) if name == FILM else _debian(task, own)
    first, second = JUDGES[name]
    few = [
        "tokens",
        "words",
        "ended",
        "fluency",
        "distinct words",
        "distinct pairs",
        *([first, second] if name == FILM else ["overlap", "unsupported", "foreign", "copied"]),
    ]
    return f"""\
## {text}

{_training(task)}

### Beams

Win rate against 1 beam of the same policy, by {TITLES[first]} and by {TITLES[second]}, and at equal
length (a logistic fit, as in AlpacaEval 2); tokens with the end token. The first seed has more
numbers of beams than the others: rows of different numbers of seeds are not to be compared.

<!-- --8<-- [start:{name}] -->
{_beams(task, name, _OWN)}
<!-- --8<-- [end:{name}] -->

Against the reference's own greedy answer:

{_beams(task, name, _REFERENCE)}

### Other ways to decode

{_others(task, name)}

### What the texts are like

{_measures(task, few)}

{_precision(task, name)}

### What was expected

Of each policy, and how much more it is so of DPO than of a control. Bold: the interval lies on one
side of 0.

{_claims(task["findings"])}

### Texts

{_samples(task, name)}"""


def _film(task: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    judges = task["judges"]
    return f"""\
Film reviews

{task["prompts"]} beginnings of {own["start_words"]} words, of sentences of the test split, are gone
on with in at most {own["new_tokens"]} tokens. The reference is tuned on {own["sft"]} sentences of
all ratings, DPO on {own["pairs"]} pairs rated {own["gap"]:g} or more apart. Two judges: a ridge
regression of people's ratings on words and pairs of words, fitted on other sentences than any
policy is trained on, and the valence of the lexicon's words, divided by the square root of the
number of words. On {judges["texts"]} held-out sentences the first correlates
{judges["rating and people"]:.2f} with people's mean rating, the second
{judges["valence and people"]:.2f}; the two {judges["rating and valence"]:.2f} with each other,
{judges["rating and words"]:.2f} and {judges["valence and words"]:.2f} with the number of words."""


def _debian(task: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    kinds = ", ".join(
        f"{each['accuracy']:.2f} where it is {kind} ({each['pairs']})"
        for kind, each in task["judges"].items()
    )
    return f"""\
Summaries of software packages

{task["prompts"]} descriptions of at most {own["prompt_tokens"]} tokens are summarised in at most
{own["written"]} tokens. The reference is tuned on {own["sft"]} synopses of maintainers, DPO on
{own["pairs"]} pairs: the maintainer's synopsis over a sample of the reference for the same package.
(That the first is better is assumed; no person compared them. A sample of more than
{own["new_tokens"]} tokens is cut and closed there, so that DPO also learns from ends that the model
would not have written.) The judge is a reward model,
trained from the untrained model on {own["judge"]} pairs of other packages: the worse side is a
sample of the reference, another package's synopsis, or the right one with one word of another's.
On held-out packages it prefers the maintainer's with accuracy {kinds}. Beside it: the F1 of
content words with the maintainer's synopsis; *unsupported*: share of content words that the
description does not hold; *foreign*: share of summaries with a number or name that it does not
hold; *copied*: share of runs of three words taken from it."""


def _training(task: Mapping[str, Any]) -> str:
    rows = [
        [
            arm,
            ", ".join(f"{each['accuracy']:.2f}" for each in seeds),
            ", ".join(f"{each['chosen']:.1f}" for each in seeds),
            ", ".join(f"{each['rejected']:.1f}" for each in seeds),
        ]
        for arm, seeds in task["training"].items()
    ]
    heads = ["policy", "accuracy on held-out pairs, by seed", "log-ratio of chosen", "of rejected"]
    return _table(heads, rows)


def _beams(task: Mapping[str, Any], name: str, against: str) -> str:
    first, second = JUDGES[name]
    rows = []
    for arm, methods in task["arms"].items():
        if arm == REFERENCE and against == _REFERENCE:
            continue
        for own in _sorted(methods):
            if own["name"] == BEAM and against in own:
                cells = _compared(own, name, against)
                if own["width"] == 1 and against == _OWN:
                    cells = ["", "", "", "", cells[-1]]  # it against itself
                rows.append([arm, str(own["width"]), str(len(own["seeds"])), *cells])
    judged = [TITLES[first], "equal length", TITLES[second], "equal length"]
    return _table(["policy", "beams", "seeds", *judged, "tokens"], rows)


def _others(task: Mapping[str, Any], name: str) -> str:
    first, second = JUDGES[name]
    rows = []
    for arm, methods in task["arms"].items():
        for own in _sorted(methods):
            if own["name"] != BEAM:
                against = _OWN if _OWN in own else _REFERENCE
                way = f"{own['name']}, {own['width']}"
                fluency = _shown(own["measures"]["fluency"], 2)
                rows.append(
                    [arm, way, str(len(own["seeds"])), *_compared(own, name, against), fluency]
                )
    if not rows:
        return "None was run."
    heads = [
        "policy",
        "way, width",
        "seeds",
        TITLES[first],
        "equal length",
        TITLES[second],
        "equal length",
        "tokens",
        "fluency",
    ]
    return (
        "Win rates against 1 beam of the same policy. Alignment-aware decoding takes the token of "
        "greatest log-ratio among those at least a tenth as probable as the likeliest; half "
        "log-ratio takes half of the reference's log-probability off; the best of n samples is "
        "that of greatest implicit reward. Five samples cost as much as five beams; log-ratios "
        "cost a second model.\n\n" + _table(heads, rows)
    )


def _compared(own: Mapping[str, Any], name: str, against: str) -> list[str]:
    cells = []
    for judge in JUDGES[name]:
        found = own[against][judge]
        cells += [_shown(found["win rate"]), _shown(found["at equal length"])]
    return [*cells, _shown(own["measures"][LENGTH], 1)]


def _measures(task: Mapping[str, Any], names: Sequence[str]) -> str:
    rows = []
    for arm, methods in task["arms"].items():
        for own in _sorted(methods):
            if own["name"] == BEAM:
                cells = [
                    f"{own['measures'][name]['value']:.2f}" if name in own["measures"] else ""
                    for name in names
                ]
                rows.append([arm, str(own["width"]), *cells])
    return (
        "*Fluency*: mean log-probability of a token, nats, under the model before any training; "
        "*distinct*: share of words, and of pairs of neighbours, that are not a repetition within "
        "the text.\n\n" + _table(["policy", "beams", *names], rows)
    )


def _precision(task: Mapping[str, Any], name: str) -> str:
    parts = []
    for each in task["precision"]:
        rows = [
            [
                width,
                f"{own['same']:.2f}",
                *(
                    f"{own[key]:.2f} / {own[f'{key} in float32']:.2f}"
                    for key in ("tokens", *JUDGES[name])
                ),
            ]
            for width, own in each["widths"].items()
        ]
        heads = ["beams", "same text", "tokens, and in float32", *JUDGES[name]]
        parts.append(
            f"Decoded in float32 as well ({each['policy']}, the first {each['prompts']} prompts):"
            f"\n\n{_table(heads, rows)}"
        )
    return "\n\n".join(parts)


def _claims(findings: Sequence[Mapping[str, Any]]) -> str:
    """A row a claim and measure, a column an arm."""
    arms = list(dict.fromkeys(each["arm"] for each in findings))
    arms.sort(key=lambda arm: " less " in arm)
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for each in findings:
        value = each["value"]
        cell = f"{value['mean']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"
        own = rows.setdefault((each["claim"], each["what"]), {})
        own[each["arm"]] = cell if each["verdict"] == "undecided" else f"**{cell}**"
    return _table(
        ["expected", "measured", *arms],
        [[*key, *(cells.get(arm, "") for arm in arms)] for key, cells in rows.items()],
    )


def _samples(task: Mapping[str, Any], name: str) -> str:
    rows = []
    for sample in task["samples"]:
        for text in sample["texts"]:
            judged = ", ".join(f"{text[judge]:.2f}" for judge in JUDGES[name])
            rows.append([text["arm"], str(text["width"]), _plain(text["text"]), judged])
        rows.append(["people", "", _plain(sample["human"]), ""])
    return _table(["by", "beams", "text", f"{JUDGES[name][0]}, {JUDGES[name][1]}"], rows)


def _limits(results: Mapping[str, Any]) -> str:
    names = {FILM: "film sentences", DEBIAN: "summaries"}
    there = " and ".join(names[name] for name in results["tasks"])
    return f"""\
## What this does not say

- One model of 135M parameters, trained for minutes; {there}, one line long. The paper's summaries
  are longer and judged by GPT-4, and length can hurt there in ways that it cannot here: texts are
  cut at the stated number of tokens.
- One recipe, its learning rate taken from the other experiments: nothing was tuned for what is
  decoded. Where *ended* is low, a length is that of cut texts.
- The judges are models and counts, not people. What they like can be met without being good, by
  training and by search.
- The reference is trained once; arms with one seed say nothing of how training varies.
- Intervals are over prompts, and there are many comparisons: one in twenty that show no difference
  in truth would lie outside."""


def _sorted(methods: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return sorted(methods.values(), key=lambda each: (each["name"], each["width"]))


def _plain(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ").replace("<", "&lt;")


def _shown(value: Mapping[str, Any] | None, digits: int = 3) -> str:
    if value is None:
        return ""
    return f"{value['value']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
