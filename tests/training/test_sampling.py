"""Global batches do not depend on who computes them; metrics and micro-batches combine exactly."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenq.training.batches import Batch, Collator, micro_batches
from tokenq.training.metrics import MetricWindow, means, merge
from tokenq.training.sampling import GlobalBatchSampler
from tokenq.training.scores import Scores, in_flat_order


def batches_of(size: int, per: int, accumulation: int, world: int, epoch: int) -> list[set[int]]:
    """The rows of every optimiser step, all processes together."""
    steps: list[set[int]] = []
    for rank in range(world):
        sampler = GlobalBatchSampler(
            size, per_process=per, accumulation=accumulation, rank=rank, world=world, seed=7
        )
        sampler.set_epoch(epoch)
        parts = list(sampler)
        assert len(parts) == len(sampler)
        for i in range(0, len(parts), accumulation):
            rows = [row for part in parts[i : i + accumulation] for row in part]
            step = i // accumulation
            steps += [set() for _ in range(step + 1 - len(steps))]
            assert not steps[step] & set(rows)
            steps[step] |= set(rows)
    return steps


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 50), st.integers(0, 3))
def test_the_same_rows_in_every_step_however_they_are_shared(size: int, epoch: int) -> None:
    whole = batches_of(size, 8, 1, 1, epoch)
    assert sorted(row for step in whole for row in step) == list(range(size))
    for per, accumulation, world in [(4, 1, 2), (2, 2, 2), (1, 8, 1), (1, 2, 4), (2, 4, 1)]:
        assert batches_of(size, per, accumulation, world, epoch) == whole


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    orders = []
    for seed, epoch in [(0, 0), (0, 0), (1, 0), (0, 1)]:
        torch.manual_seed(len(orders))
        sampler = GlobalBatchSampler(30, per_process=30, seed=seed)
        sampler.set_epoch(epoch)
        orders.append(next(iter(sampler)))
    assert orders[0] == orders[1]
    assert orders[0] != orders[2] != orders[3] != orders[0]


def test_drop_last_drops_the_partial_batch() -> None:
    sampler = GlobalBatchSampler(11, per_process=4, seed=None, drop_last=True)
    assert list(sampler) == [[0, 1, 2, 3], [4, 5, 6, 7]]


ids = st.lists(st.integers(0, 5), min_size=1, max_size=9)
pair_rows = st.lists(
    st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=2), ids, ids), max_size=12
)


@settings(max_examples=100, deadline=None)
@given(pair_rows, st.integers(1, 40))
def test_micro_batches_partition_the_rows_within_the_budget(
    rows: list[tuple[list[int], list[int], list[int]]], budget: int
) -> None:
    batch = Batch(
        tuple(range(100, 100 + len(rows))),
        tuple(prompt for prompt, _, _ in rows),
        tuple((chosen, rejected) for _, chosen, rejected in rows),
    )
    parts = micro_batches(batch, budget)
    assert sorted(row for part in parts for row in part.rows) == list(batch.rows)
    for part in parts:
        for row, prompt, answers in zip(part.rows, part.prompts, part.responses, strict=True):
            assert (prompt, *answers) == rows[row - 100]
        pack = part.pack()
        assert len(part) == 1 or len(pack.input_ids) <= budget
        # What is put in flat order comes out in flat order.
        _, flat = part.flat()
        back = in_flat_order(pack.for_every_row(pack.targets), pack)
        assert [row.tolist() for row in back] == flat


def test_no_rows_make_no_micro_batch() -> None:
    assert micro_batches(Collator(("chosen_ids",))([]), 100) == []


def test_sides_are_padded_apart() -> None:
    rows = [torch.ones(2), torch.ones(3), torch.full((1,), 5.0), torch.full((4,), 6.0)]
    batch = Batch((0, 1), ([9], [9]), (([1] * 2, [1]), ([1] * 3, [1] * 4)))
    chosen, rejected = (Scores(batch, rows).side(number) for number in (0, 1))
    assert chosen.logps.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert rejected.logps.tolist() == [[5, 0, 0, 0], [6, 6, 6, 6]]
    assert rejected.mask.tolist() == [[True, False, False, False], [True] * 4]


def test_metrics_weigh_parts_within_a_step_and_average_steps() -> None:
    windows = [MetricWindow(), MetricWindow()]
    for window in windows:
        window.begin_step()
    # Step 1: 1 pair with value 4 here, 3 pairs with value 0 there: mean 1. Step 2: mean 3.
    windows[0].add("margin", torch.tensor(4.0), torch.tensor(1))
    windows[1].add("margin", torch.tensor(0.0), torch.tensor(3))
    windows[0].begin_step()
    windows[0].add("margin", torch.tensor(3.0), torch.tensor(2))
    windows[0].add("nll", torch.tensor(7.0), torch.tensor(5))
    expected = {"margin": 2.0, "nll": 7.0}
    cells = merge(window.cells() for window in windows)
    assert means(cells) == expected
    restored = MetricWindow()
    restored.restore(cells[:1])
    restored.begin_step()
    restored.add("margin", torch.tensor(3.0), torch.tensor(2))
    assert means(restored.cells())["margin"] == 2.0
    restored.clear()
    assert restored.cells() == []


def test_restored_metrics_stay_in_their_own_steps_with_several_processes() -> None:
    def step(window: MetricWindow, value: float, weight: int) -> None:
        window.begin_step()
        window.add("margin", torch.tensor(value), torch.tensor(weight))

    unbroken = [MetricWindow(), MetricWindow()]
    resumed = [MetricWindow(), MetricWindow()]
    for window, value in zip(unbroken, (4.0, 0.0), strict=True):
        step(window, value, 1)
    checkpoint = merge(window.cells() for window in unbroken)
    for number, window in enumerate(resumed):
        window.restore(checkpoint, first=number == 0)
    for windows in (unbroken, resumed):
        step(windows[0], 10.0, 3)
        step(windows[1], 20.0, 1)
    cells = merge(window.cells() for window in resumed)
    assert cells == merge(window.cells() for window in unbroken)
    assert means(cells)["margin"] == (2.0 + 12.5) / 2
