"""The page of `tokenq reproduce decline`."""

from collections.abc import Mapping, Sequence
from typing import Any

from tokenq.reproduce.beam_decoding.settings import DEBIAN, FILM
from tokenq.reproduce.findings import findings_table
from tokenq.reproduce.likelihood_decline.settings import CHOSEN, NONE, OTHER, REJECTED
from tokenq.reproduce.statistics import shown

_HEADS = {FILM: "Film reviews", DEBIAN: "Summaries of software packages"}
_DATA = {
    FILM: "A pair is two sentences of film reviews, at least {gap:g} apart in people's mean rating "
    "(scale -4 to 4), of nearly the same number of words; all answer the same instruction. People "
    "rated the sentences, they did not compare them.",
    DEBIAN: "A pair is the maintainer's one-line summary of a package over a sample for the same "
    "package, of the model tuned on other packages' summaries (that of `tokenq reproduce beam`; a "
    "sample is cut at {tokens} tokens and closed). That the maintainer's is better is assumed: no "
    "person compared them. The rejected answers are thus samples of something near the tuned "
    "references here, and of nothing near the untuned one.",
}
_STARTS = {
    CHOSEN: "tuned on the chosen answers of the pairs that DPO then trains on",
    NONE: "not tuned",
    OTHER: "control: tuned on as many answers like the chosen ones that are in no pair",
    REJECTED: "control: tuned on the rejected answers",
}
_SAMPLE_ROWS = (
    ("tokens", "ref_tokens", "sample_tokens", 1),
    ("ended", "ref_ended", "sample_ended", 2),
    ("repetition", "ref_repetition", "sample_repetition", 3),
)


def page(results: Mapping[str, Any]) -> str:
    """Results as Markdown."""
    if "unfinished" in results:
        return f"Runs of the whole: {', '.join(results['unfinished'])}."
    settings = results["settings"]
    parts = [_intro(settings), _identity(results["identity"])]
    parts += [_task(name, task, settings) for name, task in results["tasks"].items()]
    parts += [_exact(results["exact"]), _limits(settings)]
    return "\n\n".join(parts)


def _intro(settings: Mapping[str, Any]) -> str:
    sft, dpo, probe = settings["sft"], settings["dpo"], settings["probe"]
    starts = "\n".join(f"- **{arm}**: {what}" for arm, what in _STARTS.items())
    return f"""\
Claimed (From r to Q*, arXiv 2404.12358, section 5.4 and figure 3): after supervised tuning on the
chosen answers, DPO makes the implicit rewards of chosen and rejected answers fall while the margin
grows; without it the chosen ones show no trend and stay above 0. The reason given is an identity:
of responses that the reference writes, the mean implicit reward is -beta KL(ref || policy).

{settings["model"]}, LoRA (rank {dpo["lora_r"]}) on the linear layers of its last
{settings["layers"]} decoder layers, all else frozen. Four starts, each of them DPO's reference:

{starts}

SFT: {sft["epochs"]} epoch, {sft["batch_size"]} answers a step, peak learning rate
{sft["learning_rate"]:g}. DPO: beta {settings["beta"]:g}, up to {settings["pairs"]} pairs,
{dpo["epochs"]} epochs, {dpo["batch_size"]} pairs a step, peak learning rate
{dpo["learning_rate"]:g}, AdamW, cosine. A seed draws pairs, order and adapter. Read at each
checkpoint: {probe["trained"]} pairs that training sees, {probe["held_out"]} that it does not, and
{probe["responses"]} responses of at most {probe["new_tokens"]} tokens that the reference wrote at
temperature 1 to held-out prompts, drawn anew for every seed. All numbers are implicit rewards
beta (log pi - log pi_ref) of whole answers, in beta times nats, unless another unit is said;
intervals are 95 % Student-t intervals over seeds, of the identity over prompts."""


def _identity(found: Mapping[str, Any]) -> str:
    gap = found["mean_gap_at_the_end"]
    return f"""\
## The identity

<!-- --8<-- [start:identity] -->
Of the {found["checkpoints"]} checkpoints that were read, the 95 % interval of (mean implicit
reward of the reference's samples) less (-beta KL), over prompts, covers 0 in {found["covered"]}
({found["covered"] / found["checkpoints"]:.0%}); of the {found["runs"]} last checkpoints in
{found["covered_at_the_end"]} (as few or fewer would by chance with probability
{found["chance_of_fewer"]:.2f}). Checkpoints of one run are read on the same responses and go
together; runs do not. The mean difference at the end is {shown(gap, 4)}, where -beta KL is
{found["mean_size_at_the_end"]:.3f} on average in size.
<!-- --8<-- [end:identity] -->"""


def _task(name: str, task: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    data = _DATA[name].format(gap=settings["gap"], tokens=settings["samples"][DEBIAN]["new_tokens"])
    return f"""\
## {_HEADS[name]}

{data}

<!-- --8<-- [start:{name}] -->
{_ends(task)}
<!-- --8<-- [end:{name}] -->

### What was expected

{findings_table(task["findings"])}

### On the way

{_way(task)}

### Where in the chosen answers

{_parts(task)}

### Accuracy, reference and samples

{_further(task)}"""


def _ends(task: Mapping[str, Any]) -> str:
    rows = []
    for arm, own in task["arms"].items():
        curves = own["curves"]
        cells = [
            shown(curves[name][-1], 2)
            for name in (
                "chosen",
                "rejected",
                "held-out chosen",
                "held-out rejected",
                "reference's samples",
                "minus beta KL",
            )
        ]
        rows.append([arm, str(len(own["seeds"])), *cells])
    heads = ["start", "seeds", "chosen", "rejected", "held-out chosen", "held-out rejected"]
    heads += ["reference's samples", "-beta KL"]
    return "Implicit rewards at the last checkpoint:\n\n" + _table(heads, rows)


def _way(task: Mapping[str, Any]) -> str:
    rows = []
    for arm, own in task["arms"].items():
        for name in ("chosen", "rejected", "held-out chosen", "reference's samples"):
            means = [f"{point['mean']:+.2f}" for point in own["curves"][name]]
            by_step = dict(zip(own["steps"], means, strict=True))
            rows.append([arm, name, *(by_step.get(step, "") for step in _steps(task))])
    return _table(["start", "", *(f"step {step}" for step in _steps(task))], rows)


def _steps(task: Mapping[str, Any]) -> list[int]:
    return sorted({step for own in task["arms"].values() for step in own["steps"]})


def _parts(task: Mapping[str, Any]) -> str:
    rows = []
    for arm, own in task["arms"].items():
        for part, values in own["parts"].items():
            rows.append(
                [
                    arm,
                    part,
                    f"{values['tokens']['mean']:.2f}",
                    shown(values["answer"], 2),
                    shown(values["token"], 3),
                ]
            )
    return (
        "Chosen answers that training saw, at the last checkpoint. *shared*: the tokens that both "
        "answers begin with; *first*: the first that differs; *later*: what follows; *end*: the "
        "end token. Parts that no answer has are left out.\n\n"
        + _table(["start", "part", "tokens an answer", "an answer", "a token"], rows)
    )


def _further(task: Mapping[str, Any]) -> str:
    rows = []
    for arm, own in task["arms"].items():
        curves = own["curves"]
        cells = [
            shown(curves["train_accuracy"][-1], 2),
            shown(curves["accuracy"][-1], 2),
            shown(curves["sft_gap"][-1], 2),
            shown(curves["chosen_beyond_kl"][-1], 2),
        ]
        for _, before, after, digits in _SAMPLE_ROWS:
            first, last = curves[before][-1]["mean"], curves[after][-1]["mean"]
            cells.append(f"{first:.{digits}f} → {last:.{digits}f}")
        rows.append([arm, *cells, ", ".join(own["decisions"])])
    heads = ["start", "accuracy", "held-out accuracy", "gap to chosen", "beyond KL"]
    heads += [name for name, *_ in _SAMPLE_ROWS]
    return (
        "*Accuracy* is of the implicit reward. *Gap to chosen*: how many nats a token the "
        "reference finds held-out chosen answers less likely than its own samples; 0 in "
        "expectation where it writes like them. *Beyond KL*: held-out chosen less what the "
        "reference's own tokens would lose in the same states; 0 in expectation where the "
        "reference wrote the answers. *Tokens*, *ended* (share) and *repetition* (share of 3-grams "
        "that occurred before) are of samples, of the reference → of the policy at the end. "
        "*Negative?* is what `tokenq monitor` says of each seed's chosen rewards.\n\n"
        + _table([*heads, "negative?"], rows)
    )


def _exact(exact: Mapping[str, Any]) -> str:
    rows = []
    for beta, arms in exact["betas"].items():
        for arm, own in arms.items():
            curves = own["curves"]
            rows.append(
                [
                    beta,
                    arm,
                    f"{own['room']:.4f}",
                    f"{own['highest']:.4f}",
                    f"{curves['chosen'][-1]:+.3f}",
                    f"{own['fallen']} of {exact['problems']}",
                    f"{curves['rejected'][-1]:+.3f}",
                    f"{curves['expected'][-1]:+.3f}",
                    f"{own['end']:+.3f}",
                ]
            )
    heads = ["beta", "start", "room", "highest", "chosen", "fallen", "rejected"]
    heads += ["reference's samples", "chosen at the least loss"]
    return f"""\
## Exact, on token MDPs

{exact["problems"]} random problems (3 words and an end token, at most 3 tokens; pairs are drawn
from a base policy and labelled by Bradley-Terry from random rewards). Tuning is without error: the
reference *is* the law of the chosen answers, of the rejected ones, the base policy itself (no
sft), or a policy that has nothing to do with them (sft other). DPO descends the exact expected
loss; rewards are expectations, nothing is sampled.

With p_c the law of the chosen answers, their expected implicit reward is
beta (KL(p_c || ref) - KL(p_c || pi)). So chosen falls if and only if training leaves the policy
farther from p_c than the reference was, and the most that it can rise by, its *room*, is
beta KL(p_c || ref): nothing after exact tuning on the chosen answers. Where the loss is least it
is E_{{p_c}}[r] - beta log E_ref[exp(r / beta)], which is below 0 for any reference once beta is
small against the spread of the rewards: SFT is sufficient for the decline and not necessary.

<!-- --8<-- [start:exact] -->
{_table(heads, rows)}
<!-- --8<-- [end:exact] -->

At all {exact["steps"]} steps of all descents, E_ref[implicit] is -beta KL to
{exact["identity_error"]:.0e}, the equation above holds to {exact["room_error"]:.0e}, and chosen
is below 0 just where the equation says: {"always" if exact["falls_as_told"] else "NOT always"}."""


def _limits(settings: Mapping[str, Any]) -> str:
    return f"""\
## What this does not say

- One model of 135M parameters whose file holds 4-bit weights, run in float32; adapters on its last
  {settings["layers"]} layers, {settings["pairs"]} pairs, minutes of training. The paper tunes all
  of a 2.8B model on some 60,000 pairs.
- *no sft* starts from a model that has been tuned for chat by its makers, not from a base model as
  in the paper; it has not been tuned on these answers.
- One beta, one learning rate and one length of training, chosen before any of the runs was read
  except one run of a longer schedule, which showed that rewards move at all.
- Three seeds give wide intervals (the t quantile is 4.3); *undecided* is what they say of anything
  small. There are many rows: one in twenty without any effect would lie outside.
- Answers are one line long and hardly any begin alike, so the shared beginning is a token or
  none: where answers share much, see `tokenq reproduce displacement`.
- Controls are read at fewer checkpoints than the arms of the claim, and an arm may have fewer
  seeds than another: where two are compared, it is on the seeds that both have.
- *Ended* is of texts of at most {settings["probe"]["new_tokens"]} tokens."""


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
