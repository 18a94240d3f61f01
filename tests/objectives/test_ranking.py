"""List-wise objectives: what the order of a row and absent answers may not change."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenq.objectives import TPO, LiPO, PlackettLuce, RankedLogps, ResponseLogps, SoftmaxDPO
from tokenq.objectives.ranking import better_than

OBJECTIVES = pytest.mark.parametrize(
    "objective",
    [PlackettLuce(0.5), SoftmaxDPO(0.5), LiPO(0.5), TPO(0.5)],
    ids=lambda o: type(o).__name__,
)
RANKS = st.lists(st.integers(-1, 4), min_size=2, max_size=6)


def lists(log_ratios: list[float], ranks: list[int]) -> RankedLogps:
    logps = torch.tensor(log_ratios, dtype=torch.float64)[:, None]
    present = torch.tensor(ranks)[:, None] >= 0
    return RankedLogps(
        ResponseLogps(logps, present, torch.zeros_like(logps)), torch.tensor([ranks])
    )


def drawn(ranks: list[int], seed: int) -> list[float]:
    generator = torch.Generator().manual_seed(seed)
    return (-3 * torch.rand(len(ranks), generator=generator)).tolist()


@given(ranks=RANKS)
def test_who_is_better_than_whom(ranks: list[int]) -> None:
    found = better_than(torch.tensor([ranks]))[0].tolist()
    expected = [[0 <= first < second for second in ranks] for first in ranks]
    assert found == expected


@OBJECTIVES
@settings(max_examples=30, deadline=None)
@given(ranks=RANKS, seed=st.integers(0, 99), data=st.data())
def test_the_order_of_a_row_does_not_matter(
    objective: PlackettLuce, ranks: list[int], seed: int, data: st.DataObject
) -> None:
    log_ratios = drawn(ranks, seed)
    order = data.draw(st.permutations(range(len(ranks))))
    loss, _ = objective(lists(log_ratios, ranks))
    shuffled = lists([log_ratios[i] for i in order], [ranks[i] for i in order])
    torch.testing.assert_close(objective(shuffled)[0], loss)


@OBJECTIVES
@settings(max_examples=30, deadline=None)
@given(ranks=RANKS, seed=st.integers(0, 99))
def test_absent_answers_do_not_matter(objective: PlackettLuce, ranks: list[int], seed: int) -> None:
    log_ratios = drawn(ranks, seed)
    loss, _ = objective(lists(log_ratios, ranks))
    longer = lists([-1.0, *log_ratios, -2.0], [-1, *ranks, -1])
    torch.testing.assert_close(objective(longer)[0], loss)
    assert objective.weight(longer) == objective.weight(lists(log_ratios, ranks))
