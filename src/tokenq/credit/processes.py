"""The processes that score one data set together, and which rows are whose."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from tokenq.errors import UserError

_PATIENCE = timedelta(days=7)
"""How long one process waits for the others, whose rows may be longer."""


@dataclass(frozen=True)
class Processes:
    """This process, number `index` of `count`, all started together."""

    index: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes what there is once."""
        return self.index == 0

    def wait(self) -> None:
        """Go on when all processes have come here."""
        if self.count > 1:
            torch.distributed.barrier()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let the main process through before the others, which then find what it has made."""
        if not self.is_main:
            self.wait()
        yield
        if self.is_main:
            self.wait()

    def leave(self) -> None:
        """Go when all processes are here, and part from them."""
        self.wait()
        if self.count > 1:
            torch.distributed.destroy_process_group()

    def check_whole(self, model: nn.Module) -> None:
        """Raise UserError for a model whose weights are divided between processes.

        Its forward is a common act of all of them, so they cannot score different rows.
        """
        if self.count > 1 and any(isinstance(each, DTensor) for each in model.parameters()):
            raise UserError(
                f"the model's weights are sharded over {self.count} processes; accepted: a whole "
                "model in each process, or one process"
            )


ALONE = Processes()


def join_processes(device: str = "auto") -> Processes:
    """Join the processes that `accelerate launch` or `torchrun` started; alone if there are none.

    device: "cpu" where the models shall run there although there are others
    """
    from accelerate import PartialState

    cpu = device == "cpu" or not torch.cuda.is_available()
    state = PartialState(cpu=cpu, timeout=_PATIENCE)
    return Processes(state.process_index, state.num_processes)


class Share:
    """The rows of a data set that a process still has to score, in order.

    Of the rows that nobody has scored yet, every `processes.count`-th is its own: processes that
    were started together with the same rows done divide the rest without a word.
    """

    def __init__(
        self, rows: Iterable[dict[str, Any]], done: Iterator[int], processes: Processes
    ) -> None:
        """
        rows: in ascending order of their field `row`
        done: ascending numbers of rows that are finished
        """
        self.passed = 0
        """Rows of the data set that were taken or passed over so far."""
        self._rows = rows
        self._done = done
        self._processes = processes

    def __iter__(self) -> Iterator[dict[str, Any]]:
        finished = next(self._done, None)
        turn = 0
        for row in self._rows:
            self.passed += 1
            while finished is not None and finished < row["row"]:
                finished = next(self._done, None)
            if finished == row["row"]:
                continue
            if turn % self._processes.count == self._processes.index:
                yield row
            turn += 1
