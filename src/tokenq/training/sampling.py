"""Which process sees which rows: the same global batches, however many processes share them."""

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Sampler


class GlobalBatchSampler(Sampler[list[int]]):
    """Indices of one process's share of every global batch.

    A global batch is `per_process * accumulation * world` consecutive rows of an order that depends
    on the seed and the epoch only. Process `rank` takes every `world`-th of its rows, in
    `accumulation` lists. The last global batch of an epoch may be smaller; no row is repeated to
    fill it, so a process may be given empty lists there.

    >>> list(GlobalBatchSampler(5, per_process=1, accumulation=2, rank=1, world=2, seed=None))
    [[1], [3], [], []]
    """

    def __init__(
        self,
        size: int,
        *,
        per_process: int,
        accumulation: int = 1,
        rank: int = 0,
        world: int = 1,
        seed: int | None,
        drop_last: bool = False,
    ) -> None:
        """Sample from `range(size)`; `seed=None` keeps the order of the rows."""
        self.size, self.per_process, self.accumulation = size, per_process, accumulation
        self.rank, self.world, self.seed, self.drop_last = rank, world, seed, drop_last
        self.epoch = 0

    @property
    def global_size(self) -> int:
        """Rows of a full global batch."""
        return self.per_process * self.accumulation * self.world

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        rounded = self.size if self.drop_last else self.size + self.global_size - 1
        return rounded // self.global_size * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        order = self._order()
        for step in range(len(self) // self.accumulation):
            batch = order[step * self.global_size : (step + 1) * self.global_size]
            share = batch[self.rank :: self.world]
            for part in range(self.accumulation):
                yield share[part * self.per_process : (part + 1) * self.per_process]

    def _order(self) -> list[int]:
        if self.seed is None:
            return list(range(self.size))
        # Own generator: the order must not depend on what else draws random numbers, or a resumed
        # run would see other rows.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order: list[int] = torch.randperm(self.size, generator=generator).tolist()
        return order


class EpochDataLoader(DataLoader):
    """DataLoader that tells its batch sampler the epoch, as transformers' loop expects."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch."""
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
