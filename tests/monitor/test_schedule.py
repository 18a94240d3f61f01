"""Probes keep to their budget of time, whatever they cost; sizes fit what a run can afford."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenq.monitor.probing import ProbeOptions
from tokenq.monitor.schedule import Due, Lengths, Schedule, fitted

LENGTHS = Lengths(prompt=20, answer=30, new_tokens=40)


@dataclass
class Run:
    """A run with a made clock: what each step, probe and sample takes, and which probes it had."""

    step_seconds: float
    probe_seconds: float
    sample_seconds: float
    opening_seconds: float
    steps: int
    first: int = 0
    first_step_seconds: float | None = None
    probes: list[tuple[int, bool]] = field(default_factory=list)

    def play(self, schedule: Schedule) -> Schedule:
        """Let it train to its end."""
        schedule.opened(self.opening_seconds)
        self._probe(schedule, self.first, Due(False))
        for step in range(self.first + 1, self.steps + 1):
            slow = self.first_step_seconds if step == self.first + 1 else None
            schedule.stepped(step, slow or self.step_seconds)
            due = schedule.final() if step == self.steps else schedule.due(step)
            if due is not None:
                self._probe(schedule, step, due)
        return schedule

    def _probe(self, schedule: Schedule, step: int, due: Due) -> None:
        seconds = self.probe_seconds + (self.sample_seconds if due.samples else 0.0)
        schedule.probed(step, seconds, samples=due.samples)
        self.probes.append((step, due.samples))


def test_probes_are_spread_evenly_and_use_what_the_budget_leaves() -> None:
    run = Run(
        step_seconds=1.0, probe_seconds=2.0, sample_seconds=0.0, opening_seconds=4.0, steps=1000
    )

    schedule = run.play(Schedule(0.03, 0, 1000))

    # 30 s: 4 for the set-up, 2 for each of the probes at both ends, the rest for 11 on the way.
    steps = [step for step, _ in run.probes]
    assert len(steps) == 13
    assert steps == pytest.approx([1000 * i / 12 for i in range(13)], abs=6)
    assert schedule.overhead == pytest.approx(0.03)


@settings(deadline=None, max_examples=200)
@given(
    step=st.floats(0.01, 10),
    probe=st.floats(0.01, 50),
    samples=st.floats(0.0, 100),
    steps=st.integers(5, 400),
    slow=st.floats(1, 100),
)
def test_the_budget_is_kept_unless_the_two_ends_alone_break_it(
    step: float, probe: float, samples: float, steps: int, slow: float
) -> None:
    run = Run(step, probe, samples, 2 * probe, steps, first_step_seconds=slow * step)
    trained = slow * step + (steps - 1) * step

    schedule = run.play(Schedule(0.03, 0, steps, samples=16, responses=16))

    assert schedule.trained == pytest.approx(trained)
    assert [place for place, _ in run.probes][:: len(run.probes) - 1] == [0, steps]
    # A first guess of what samples cost can be wrong once, by what they cost.
    wrong_guess = max(0.0, samples - 2 * probe) if any(drawn for _, drawn in run.probes) else 0.0
    assert schedule.spent <= max(4 * probe, 0.03 * trained + wrong_guess) * (1 + 1e-9)


def test_a_first_step_that_compiles_buys_no_probes() -> None:
    run = Run(0.1, 1.0, 0.0, 1.0, steps=200, first_step_seconds=60.0)
    paced = Run(0.1, 1.0, 0.0, 1.0, steps=200)

    run.play(Schedule(0.03, 0, 200))
    paced.play(Schedule(0.03, 0, 200))

    assert len(paced.probes) == 2  # 3 % of 20 s
    assert len(run.probes) == 2  # 3 % of 80 s are 2.4 s, and 3 are needed already


def test_samples_are_drawn_at_the_end_first_and_more_often_where_there_is_time() -> None:
    tight = Run(1.0, 2.0, 10.0, 4.0, steps=1000)
    ample = Run(10.0, 2.0, 10.0, 4.0, steps=3000)

    tight.play(Schedule(0.03, 0, 1000, samples=8, responses=8))
    ample.play(Schedule(0.03, 0, 3000, samples=8, responses=8))

    assert [step for step, drawn in tight.probes if drawn] == [1000]
    drawn = [step for step, sampled in ample.probes if sampled]
    assert len(drawn) > 20
    assert drawn[-1] == 3000
    assert len(ample.probes) <= 52


def test_no_samples_where_they_would_leave_no_probe_on_the_way() -> None:
    run = Run(1.0, 2.0, 20.0, 4.0, steps=1000)

    schedule = run.play(Schedule(0.03, 0, 1000, samples=8, responses=1))

    assert not any(drawn for _, drawn in run.probes)
    assert schedule.overhead <= 0.03 + 1e-9


def test_time_for_the_report_is_kept_back() -> None:
    run = Run(1.0, 2.0, 0.0, 4.0, steps=1000)
    short = Run(1.0, 0.5, 0.0, 0.5, steps=100)

    schedule = run.play(Schedule(0.03, 0, 1000, closing=10.0))
    too_short = short.play(Schedule(0.03, 0, 100, closing=3.0))

    assert schedule.spent == pytest.approx(20.0)  # 30 s less those of the report
    assert schedule.closes()
    assert len(short.probes) == 2
    assert not too_short.closes()


def test_every_so_many_steps_whatever_it_costs() -> None:
    run = Run(0.01, 5.0, 5.0, 5.0, steps=10)

    run.play(Schedule(0.03, 0, 10, every=4, samples=8, responses=8))

    assert run.probes == [(0, False), (4, True), (8, True), (10, True)]


def test_a_resumed_run_counts_what_was_spent_before() -> None:
    whole = Run(1.0, 2.0, 0.0, 4.0, steps=1000)
    whole.play(Schedule(0.03, 0, 1000))
    second = Run(1.0, 2.0, 0.0, 1.0, steps=1000, first=500)

    schedule = second.play(Schedule(0.03, 500, 1000, trained=500.0, spent=16.0))

    assert schedule.overhead <= 0.03
    assert 4 <= len(second.probes) <= len(whole.probes)


def test_a_probe_is_as_large_as_the_run_can_afford() -> None:
    full = ProbeOptions()
    needed = LENGTHS.opening(full) + 8 * LENGTHS.reading(full) + LENGTHS.sampling(full)

    assert fitted(full, LENGTHS, 2 * needed) == full
    half = ProbeOptions(held_out=16, trained=16, responses=16, samples=8)
    enough = LENGTHS.opening(half) + 8 * LENGTHS.reading(half) + LENGTHS.sampling(half)
    assert fitted(full, LENGTHS, 1.26 * enough) == half  # a fifth is kept back
    least = fitted(full, LENGTHS, 0.1 * needed)
    assert least is not None
    assert (least.held_out, least.trained, least.responses, least.samples) == (8, 4, 8, 0)
    cost = LENGTHS.opening(least) + 2 * LENGTHS.reading(least)
    assert fitted(full, LENGTHS, cost * 1.001) == least
    assert fitted(full, LENGTHS, cost * 0.999) is None


@given(
    allowance=st.floats(0, 1e7),
    held_out=st.integers(0, 64),
    trained=st.integers(0, 64),
    responses=st.integers(0, 64),
)
def test_no_probe_is_made_larger_than_asked(
    allowance: float, held_out: int, trained: int, responses: int
) -> None:
    asked = ProbeOptions(held_out=held_out, trained=trained, responses=responses)

    found = fitted(asked, LENGTHS, allowance)

    if found is not None:
        for name in ("held_out", "trained", "responses", "samples"):
            assert getattr(found, name) <= getattr(asked, name)
        assert LENGTHS.opening(found) + 2 * LENGTHS.reading(found) <= allowance


def test_costs_of_a_probe_by_hand() -> None:
    options = ProbeOptions(held_out=1, trained=1, responses=2, samples=3)

    # Two pairs of 20 + 2 * 30 tokens, two responses of 20 + 40.
    assert LENGTHS.reading(options) == pytest.approx(1.2 * (2 * 80 + 2 * 60))
    # Written: prompts and responses once, and 45 forwards for each of 40 tokens in turn.
    assert LENGTHS.opening(options) == pytest.approx(336 + 2 * 60 + 45 * 40)
    assert LENGTHS.sampling(options) == pytest.approx(3 * 60 + 45 * 40 + 2 * 1.2 * 3 * 60)
