"""Negative chosen rewards: expected or harmful? What is asked most of a run, and how it is decided.

Two facts decide. The KL identity (eq. 16 of 2404.12358): whatever the policy, text that the
reference wrote has implicit reward -beta KL(ref || pi) < 0 in expectation, so chosen answers like
it must fall by that much, and the best policy of all makes them fall. And displacement
(2410.08847): a margin can grow while mass leaves the chosen answers for what neither answer says,
or for what the rejected one says. So a decline is

harmful     if the chosen answers fall beyond KL(ref || pi) in the very states they pass (of text by
            the reference this excess is 0 in expectation, token by token) and the reference might
            have written them, or the policy's own ranking of the two answers gets worse, or its
            mass or its samples move from what the chosen answers say to what the rejected ones say
expected    if none of that is seen, the first is excluded by its interval and not just unseen, and
            the decline has bought a margin
undecided   otherwise: too few pairs, a reference that the numbers do not fit, a fall beyond
            KL(ref || pi) of answers that the reference would not have written (where its own are
            better, the best policy lowers them so: pairs compare them with rejected ones alone), a
            policy that left its reference without telling the answers apart, mass that went to
            neither answer (which a better third answer would explain as well), or logs alone, which
            hold neither side of the identity
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from tokenq.monitor.findings import advice
from tokenq.monitor.findings.decline import LEAST_FALL
from tokenq.monitor.findings.displacement import (
    LEAST_EXCESS,
    LEAST_EXCESS_SHARE,
    LEAST_FORK,
    LEAST_TOWARD,
)
from tokenq.monitor.findings.learning import LEAST_RANKING
from tokenq.monitor.findings.reference import (
    LEAST_BREAK,
    LEAST_BREAK_SHARE,
    SFT_LEAST,
    SFT_USUAL,
    START_LEAST,
)
from tokenq.monitor.findings.wording import said
from tokenq.monitor.identity import LEVEL, Interval
from tokenq.monitor.measures import Rows, difference, rows
from tokenq.monitor.readings import HELD_OUT, History, Setup

Verdict = Literal["expected", "harmful", "undecided", "not negative"]
Sign = Literal["expected", "harmful", "open", "fact"]
SURE = 0.99
"""Level of the intervals that must leave 0 out before harm is said: four tests speak of it, so a
run without harm is called harmful in at most 2 % of cases by chance (each looks at one side)."""
BROKEN = 0.999
"""Level of the interval that must leave 0 out before the identity is said to be broken."""
LEAST_LIKENESS = 0.05
"""Difference of cosines that samples must have lost."""
START_SHARE = 0.25
"""Share of the whole decline that may have been there before the first step."""
POOLED = 4
"""Readings whose samples are taken together: those of one are few."""
RECENT = 8
"""Log lines that the last values are means of."""


@dataclass(frozen=True)
class Reason:
    """One test.

    test:     what was looked at
    value:    the estimate
    interval: where it is known; at the level that `says` names or 95 %
    says:     what it came to, in words and numbers
    sign:     what it speaks for; "open": it could not tell; "fact": for neither
    """

    test: str
    value: float
    interval: Interval | None
    says: str
    sign: Sign = "fact"


@dataclass(frozen=True)
class Decision:
    """The answer at a step: verdict, one sentence, the tests behind it, and what to change."""

    verdict: Verdict
    step: int
    answer: str
    reasons: Sequence[Reason]
    change: Sequence[str]


def decide(history: History) -> Decision:
    """Whether chosen rewards are negative at the last reading, and if so, whether that is harm."""
    if history.setup is None or not history.readings:
        return _from_logs(history)
    known = _Known.of(history, history.setup)
    if known.reward is None:
        return Decision("undecided", known.step, "The probe holds no pairs.", [], [advice.PROBE])
    negative = _negative(known)
    if known.reward.high is None or known.reward.high >= 0:
        return _not_negative(known, negative)
    doubts = [doubt for doubt in (_start(known), _identity(known)) if doubt]
    tests = [each for test in _TESTS if (each := test(known))]
    reasons = [negative, *doubts, *tests]
    signs = {reason.sign for reason in doubts if reason.sign == "open"}
    if signs:
        return _mismeasured(known, reasons)
    harmful = [reason for reason in tests if reason.sign == "harmful"]
    if harmful:
        return _harmful(known, reasons, harmful)
    unsure = [reason for reason in tests if reason.sign == "open"]
    return _undecided(known, reasons, unsure) if unsure else _expected(known, reasons)


@dataclass(frozen=True)
class _Known:
    """The last reading's rows: of held-out pairs, or of training pairs where there are none."""

    setup: Setup
    step: int
    held_out: bool
    values: dict[str, Rows]
    start: dict[str, Rows]

    @classmethod
    def of(cls, history: History, setup: Setup) -> "_Known":
        last = history.readings[-1]
        values = rows(setup, last)
        drawn = [reading for reading in history.readings if reading.samples is not None]
        recent = [rows(setup, reading) for reading in drawn[-POOLED:] if reading.step > 0]
        name = "likelihood/sample_likeness"
        found = [each[name] for each in recent if name in each]
        if found:
            values[name] = Rows(
                np.concatenate([each.values for each in found]),
                np.concatenate([each.clusters for each in found]),
            )
        held_out = any(pair.source == HELD_OUT for pair in setup.probe.pairs)
        first = history.readings[0]
        start = rows(setup, first) if first.step == 0 else {}
        return cls(setup, last.step, held_out, values, start)

    @property
    def pairs(self) -> str:
        return "held-out" if self.held_out else "training"

    def rows(self, name: str, *, start: bool = False) -> Rows | None:
        """Of a measure, of the pairs that are watched."""
        values = self.start if start else self.values
        found = values.get(f"likelihood/{'' if self.held_out else 'train_'}{name}")
        return found or values.get(f"likelihood/{name}")

    def interval(self, name: str, level: float = LEVEL, scale: float = 1.0) -> Interval | None:
        """Of a measure times `scale`."""
        found = self.rows(name)
        return None if found is None else Rows(found.values * scale, found.clusters).interval(level)

    def nats(self, name: str, level: float = LEVEL) -> Interval | None:
        """Of a measure in beta times nats: the same in nats."""
        return self.interval(name, level, 1 / self.setup.beta)

    def change(self, now: str, before: str, level: float) -> Interval | None:
        ours, theirs = self.rows(now), self.rows(before)
        if ours is None or theirs is None:
            return None
        return difference(ours, theirs).interval(level)

    @property
    def reward(self) -> Interval | None:
        return self.interval("chosen_reward")

    @property
    def fall(self) -> float:
        """Mean nats that a chosen answer has lost."""
        lost = self.nats("chosen_reward")
        return 0.0 if lost is None else -lost.mean

    @property
    def foreign(self) -> Interval | None:
        """Nats a token by which the reference is surprised at chosen answers, where it is clear
        that it would not have written them."""
        surprise = self.interval("sft_surprise")
        if surprise is None or surprise.low is None or surprise.high is None:
            return None
        clear = surprise.low > SFT_USUAL or surprise.high < -SFT_USUAL
        return surprise if clear and abs(surprise.mean) >= SFT_LEAST else None

    @property
    def least_excess(self) -> float:
        """Nats beyond the identity that matter."""
        return max(LEAST_EXCESS, LEAST_EXCESS_SHARE * self.fall)


def _negative(known: _Known) -> Reason:
    reward = known.reward
    assert reward is not None
    rejected, margin = known.interval("rejected_reward"), known.interval("margin")
    beside = ""
    if rejected and margin:
        beside = f"; rejected {rejected.mean:.3f}, margin {said(margin, digits=3)}"
    return Reason(
        "chosen reward",
        reward.mean,
        reward,
        f"{known.pairs} chosen answers have reward {reward.mean:.3f} (beta x nats), "
        f"{-known.fall:+.2f} nats an answer{beside}",
    )


def _start(known: _Known) -> Reason | None:
    """Whether policy and reference differed before the first step."""
    gap = known.rows("start_gap", start=True)
    found = gap.interval() if gap else None
    if found is None:
        return None
    off = found.mean >= max(START_LEAST, START_SHARE * known.fall)
    words = "so rewards were off before any training" if off else "as it should be"
    return Reason(
        "start",
        found.mean,
        found,
        f"before the first step policy and reference differed by {found.mean:.3f} nats an answer, "
        f"{words}",
        "open" if off else "fact",
    )


def _identity(known: _Known) -> Reason | None:
    """Whether the reference's own responses obey the identity: it cannot fail but by a mistake."""
    gap = known.interval("identity_gap", BROKEN, 1 / known.setup.beta)
    reward, expected = known.interval("expected_reward"), known.interval("minus_beta_kl")
    if gap is None or reward is None or expected is None:
        return None
    kl = -expected.mean / known.setup.beta
    broken = not gap.holds(0.0) and abs(gap.mean) >= max(LEAST_BREAK, LEAST_BREAK_SHARE * kl)
    words = "it does not hold" if broken else "it holds"
    return Reason(
        "KL identity",
        reward.mean,
        reward,
        f"the reference's own responses have reward {said(reward, digits=3)}, and "
        f"-beta KL(ref || pi) is {said(expected, digits=3)}: {words}",
        "open" if broken else "expected",
    )


def _beyond(known: _Known) -> Reason | None:
    """What chosen answers lost beyond KL(ref || pi) in the states that they pass."""
    sure, usual = known.nats("chosen_beyond_kl", SURE), known.nats("chosen_beyond_kl")
    if sure is None or usual is None:
        return None
    least = known.least_excess
    text = (
        f"of the {known.fall:.2f} nats that a chosen answer lost, {known.fall + usual.mean:.2f} "
        f"are KL(ref || pi) of its states; beyond that it changed by {said(usual)}"
    )
    sign: Sign = "open"
    if sure.high is not None and sure.high < 0 and -sure.mean >= least:
        words = f"less than 0 at {SURE:.0%}, and more than {least:.2f} nats"
        if foreign := known.foreign:
            words += (
                f"; but the reference would not have written them (surprise {said(foreign)} nats a "
                "token), and where its own answers are better the best policy lowers them so"
            )
        else:
            sign = "harmful"
    elif usual.low is not None and usual.low > -least:
        sign, words = "expected", f"a loss of {least:.2f} nats or more is excluded"
    else:
        words = f"a loss of {least:.2f} nats, which would matter, is not excluded"
    return Reason("beyond the identity", usual.mean, usual, f"{text}: {words}", sign)


def _margin(known: _Known) -> Reason | None:
    """Whether the decline has told the answers apart: going astray obeys the identity as well."""
    margin = known.interval("margin")
    if margin is None:
        return None
    bought = margin.low is not None and margin.low > 0
    return Reason(
        "margin",
        margin.mean,
        margin,
        f"{known.pairs} chosen answers are ahead of rejected ones by {said(margin, digits=3)}",
        "expected" if bought else "open" if known.fall >= LEAST_FALL else "fact",
    )


def _peak(known: _Known) -> Reason | None:
    """How far the policy gathers on its most probable tokens. It speaks for neither: learning a
    reward sharpens a policy as squeezing (2407.10490) does."""
    peak = known.interval("peak_chosen")
    if peak is None:
        return None
    return Reason(
        "most probable tokens",
        peak.mean,
        peak,
        f"the most probable token in a state of the chosen answers has gained {said(peak)} nats",
    )


def _excess_decline(known: _Known) -> Reason | None:
    """The same beside the reference's own responses: other states, so no test of its own."""
    excess = known.interval("excess_decline")
    if excess is None:
        return None
    return Reason(
        "beside the reference's responses",
        excess.mean,
        excess,
        "per token, chosen rewards less those of the reference's own responses to the same "
        f"prompts: {said(excess, digits=4)}",
    )


def _ranking(known: _Known) -> Reason | None:
    """Whether the policy's own likelihood ranks the pairs worse than the reference's did."""
    sure = known.change("ranking_accuracy", "ref_ranking_accuracy", SURE)
    usual = known.change("ranking_accuracy", "ref_ranking_accuracy", LEVEL)
    if sure is None or usual is None:
        return None
    worse = sure.high is not None and sure.high < 0 and -sure.mean >= LEAST_RANKING
    return Reason(
        "ranking by the policy itself",
        usual.mean,
        usual,
        f"share of {known.pairs} pairs whose chosen answer is the likelier one, change since the "
        f"reference: {said(usual)}",
        "harmful" if worse else "expected" if usual.mean >= 0 else "fact",
    )


def _meaning(known: _Known) -> Reason | None:
    """Whether mass at the fork moved to tokens like the rejected one, the chosen one losing."""
    toward, chosen = known.interval("fork_toward", SURE), known.interval("fork_chosen", SURE)
    usual = known.interval("fork_toward")
    if toward is None or chosen is None or usual is None:
        return None
    lost = chosen.high is not None and chosen.high < 0
    away = toward.high is not None and toward.high < 0 and -toward.mean >= LEAST_TOWARD
    return Reason(
        "mass by meaning",
        usual.mean,
        usual,
        f"where the answers part, the chosen token's probability changed by {chosen.mean:+.3f}; "
        "mass of other tokens that moved to those like the chosen one (below 0: like the rejected "
        f"one): {said(usual, digits=3)}",
        "harmful" if lost and away else "fact",
    )


def _samples(known: _Known) -> Reason | None:
    """Whether what the policy writes moved from the chosen to the rejected answers."""
    sure = known.change("sample_likeness", "ref_likeness", SURE)
    usual = known.change("sample_likeness", "ref_likeness", LEVEL)
    if sure is None or usual is None:
        return None
    away = sure.high is not None and sure.high < 0 and -sure.mean >= LEAST_LIKENESS
    nearer = usual.low is not None and usual.low > 0
    return Reason(
        "samples by meaning",
        usual.mean,
        usual,
        "likeness of the policy's samples to the chosen answers less that to the rejected ones, "
        f"change since the reference: {said(usual, digits=3)}",
        "harmful" if away else "expected" if nearer else "fact",
    )


def _neither(known: _Known) -> Reason | None:
    """Whether the fork's mass left the chosen token for those of neither answer."""
    chosen, other = known.interval("fork_chosen", SURE), known.interval("fork_other", SURE)
    usual = known.interval("fork_other")
    if chosen is None or other is None or usual is None:
        return None
    lost = chosen.high is not None and chosen.high < 0 and -chosen.mean >= LEAST_FORK
    gone = other.low is not None and other.low > 0 and other.mean >= -chosen.mean / 2
    return Reason(
        "mass to neither answer",
        usual.mean,
        usual,
        f"where the answers part, tokens of neither changed by {said(usual, digits=3)} of "
        f"probability while the chosen one changed by {chosen.mean:+.3f}",
        "open" if lost and gone else "fact",
    )


_TESTS = (
    _beyond,
    _ranking,
    _meaning,
    _samples,
    _margin,
    _neither,
    _peak,
    _excess_decline,
)


def _not_negative(known: _Known, negative: Reason) -> Decision:
    reward = known.reward
    assert reward is not None
    reasons = [negative, *filter(None, [_identity(known), _ranking(known)])]
    if known.fall >= LEAST_EXCESS:
        return Decision(
            "undecided",
            known.step,
            f"Undecided: at step {known.step} {known.pairs} chosen answers have lost "
            f"{known.fall:.2f} nats on average, and there are too few pairs to be sure that it is "
            "a loss at all.",
            reasons,
            ["Read more held-out pairs."],
        )
    words = "above 0" if reward.low is not None and reward.low > 0 else "not measurably below 0"
    return Decision(
        "not negative",
        known.step,
        f"At step {known.step} {known.pairs} chosen rewards are {words}: {said(reward, digits=3)}.",
        reasons,
        [],
    )


def _mismeasured(known: _Known, reasons: Sequence[Reason]) -> Decision:
    return Decision(
        "undecided",
        known.step,
        f"At step {known.step} chosen rewards are negative ({known.fall:.2f} nats an answer), but "
        "the reference is not the model that the numbers should be read against.",
        reasons,
        [advice.CHECK_REFERENCE],
    )


_DISPLACED = (advice.SFT_TERM, advice.DPOP, advice.SFT_FIRST, advice.EARLIER, advice.FILTER)
_HARM = {
    "beyond the identity": ("chosen answers lose more than the KL identity asks for", _DISPLACED),
    "mass by meaning": ("mass moves to what the rejected answers say", _DISPLACED),
    "samples by meaning": ("samples move away from what the chosen answers say", _DISPLACED),
    "ranking by the policy itself": (
        "the policy itself ranks the pairs worse than before",
        (advice.EARLIER, advice.LOWER_RATE, advice.MORE_DATA),
    ),
}
"""By test: what it found, and what to change."""


def _harmful(known: _Known, reasons: Sequence[Reason], harm: Sequence[Reason]) -> Decision:
    found = ", and ".join(_HARM[reason.test][0] for reason in harm)
    change = dict.fromkeys(each for reason in harm for each in _HARM[reason.test][1])
    return Decision(
        "harmful",
        known.step,
        f"Harmful: at step {known.step} chosen answers have lost {known.fall:.2f} nats, and "
        f"{found}.",
        reasons,
        list(change),
    )


def _expected(known: _Known, reasons: Sequence[Reason]) -> Decision:
    return Decision(
        "expected",
        known.step,
        f"Expected: at step {known.step} chosen answers have lost {known.fall:.2f} nats, as text "
        "like the reference's own must under any policy this far from it; nothing shows that the "
        "mass went to what was not preferred.",
        reasons,
        [],
    )


def _undecided(known: _Known, reasons: Sequence[Reason], unsure: Sequence[Reason]) -> Decision:
    tests, change = {reason.test for reason in unsure}, []
    if "beyond the identity" in tests:
        change += _about_excess(known)
    if "margin" in tests:
        change += [advice.EARLIER, advice.LOWER_RATE]
    if "mass to neither answer" in tests:
        change.append(
            "Read samples of the policy: whether the tokens that gained begin answers as good as "
            "the chosen ones is for a reader or a judge to say."
        )
    found = " and ".join(reason.test for reason in unsure)
    return Decision(
        "undecided",
        known.step,
        f"Undecided: at step {known.step} chosen answers have lost {known.fall:.2f} nats; nothing "
        f"shows harm, but this is open: {found}.",
        reasons,
        change,
    )


def _about_excess(known: _Known) -> list[str]:
    """What would tell whether a loss beyond the identity is there, or is harm."""
    beyond, nats = known.rows("chosen_beyond_kl"), known.nats("chosen_beyond_kl")
    if beyond is None or nats is None:
        return [advice.PROBE]
    if known.foreign and -nats.mean >= known.least_excess:
        return [
            "Compare answers of the reference with the chosen ones: where its own are better, "
            "chosen answers should fall; where not, the decline is harm.",
            advice.SFT_FIRST,
        ]
    return [_more_pairs(known, beyond)]


def _more_pairs(known: _Known, beyond: Rows) -> str:
    """How many pairs would let the interval exclude a loss that matters, were the mean 0."""
    means = beyond.means[1] / known.setup.beta
    if len(means) < 2:
        return "Probe more pairs."
    needed = int(np.ceil((2 * means.std(ddof=1) / known.least_excess) ** 2)) + 1
    if needed <= len(means):
        return "Probe again later, and other pairs: the estimate lies near what would matter."
    return f"Probe more pairs: some {needed} of them in place of {len(means)} would tell."


def _from_logs(history: History) -> Decision:
    """From a trainer's logs alone, which can say that rewards are not negative and little else."""
    lines = _reward_lines(history)
    step = max((int(line["step"]) for line in history.logs), default=0)
    if lines is None:
        known = "No probe was taken, and no log line holds rewards/chosen"
        answer = f"{known}: nothing can be said of the chosen rewards."
        return Decision("undecided", step, answer, [], [advice.PROBE])
    split, chosen, rejected = lines
    recent = chosen[-RECENT:]
    reward = Rows(recent, np.arange(len(recent))).interval()
    assert reward is not None
    name = f"{split}rewards/chosen"
    says = f"mean of the last {len(recent)} log lines: {said(reward, digits=3)} (beta x nats)"
    reasons = [Reason(name, reward.mean, replace(reward), says)]
    if (reward.high if reward.high is not None else reward.mean) >= 0:
        answer = f"At step {step} the logged {name} is not measurably below 0."
        return Decision("not negative", step, answer, reasons, [])
    reasons += _trends(split, chosen, rejected)
    return Decision(
        "undecided",
        step,
        f"Undecided: at step {step} the logged {name} is {reward.mean:.3f}. A trainer's logs hold "
        "neither KL(ref || pi) nor where the mass went, so an expected decline and a harmful one "
        "look the same in them.",
        reasons,
        [advice.PROBE],
    )


def _reward_lines(history: History) -> tuple[str, Any, Any] | None:
    """Prefix, chosen and rejected rewards: of evaluations where they were logged."""
    for split in ("eval_", ""):
        names = [f"{split}rewards/{side}" for side in ("chosen", "rejected")]
        values = np.array(
            [
                [float(line[names[0]]), float(line.get(names[1], np.nan))]
                for line in history.logs
                if isinstance(line.get(names[0]), int | float)
            ]
        ).reshape(-1, 2)
        values = values[np.isfinite(values[:, 0])]
        if len(values):
            return split, values[:, 0], values[:, 1]
    return None


def _trends(split: str, chosen: Any, rejected: Any) -> list[Reason]:
    """What the two curves say beside each other."""
    if not np.isfinite(rejected).any():
        return []
    margins = (chosen - rejected)[np.isfinite(rejected)]
    last = float(margins[-RECENT:].mean())
    if last <= 0:
        says = f"{last:.3f}: chosen answers do not even keep ahead of rejected ones"
    else:
        says = (
            f"{last:.3f}: rejected answers fall faster, in an expected decline as in a harmful one"
        )
    return [Reason(f"{split}rewards/margins", last, None, says)]
