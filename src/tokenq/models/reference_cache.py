"""Log-probabilities of the reference, token by token, computed once and kept on disk.

They depend on the reference's weights and on the token ids alone, so every objective, credit and
every later run with the same reference reads them from here.
"""

import hashlib
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed
from filelock import FileLock, Timeout
from peft import PeftModel
from torch import Tensor
from torch.distributed.tensor import DTensor
from tqdm import tqdm
from transformers import PreTrainedModel

from tokenq.errors import UserError
from tokenq.models.fingerprint import weight_hash
from tokenq.models.packing import Ids
from tokenq.models.reference import AdapterOff, running_in, scoring
from tokenq.models.reference_shards import KEY_BYTES, ShardFolder
from tokenq.storage import cache_dir

# A fill that is killed loses at most this much work (and what one chunk takes).
FLUSH_SECONDS = 30.0
_FLUSH_ROWS = 16384
# Tokens of a chunk, the unit that one process computes while others leave it alone, in budgets.
_CHUNK_BUDGETS = 2
_PROGRESS_DELAY_SECONDS = 3.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FillReport:
    """What a fill did. ``rows``: distinct rows asked for; ``found``: already there before."""

    rows: int
    found: int
    computed: int
    seconds: float


@dataclass(frozen=True)
class CacheStats:
    """What lies in a cache: rows (doubles counted), shards, bytes on disk, damaged shards met."""

    rows: int
    shards: int
    bytes: int
    corrupt: int


class ReferenceCache:
    """A folder of reference log-probs. Open it with :meth:`open`, then ``fill`` and ``lookup``.

    Any number of processes may fill and read the same folder at the same time.
    """

    def __init__(
        self,
        folder: Path,
        reference: PreTrainedModel | PeftModel | AdapterOff | None,
        autocast: torch.dtype | None = None,
        weights: str = "",
    ) -> None:
        self.folder = folder
        self.weights = weights
        """The weight hash of the reference, for a cache that was made by :meth:`open`."""
        self.autocast = autocast
        self.reference = reference
        """Set it to None to free the model: ``lookup`` does not need it, ``fill`` does."""
        self._shards = ShardFolder(folder)
        self._shards.refresh()

    @classmethod
    def open(
        cls,
        reference: PreTrainedModel | PeftModel | AdapterOff,
        root: str | Path | None = None,
        autocast: torch.dtype | None = None,
    ) -> "ReferenceCache":
        """The cache of this reference: ``root/<weight hash>-<dtype>``.

        root:     by default tokenq's cache folder. Damaged shards are reported, dropped and
                  computed again by the next fill. With sharded (FSDP2) weights every process must
                  call this.
        autocast: precision that the forward runs in where it is not that of the weights, as in
                  mixed-precision training; such log-probs have a folder of their own

        Raises ``UserError`` if the folder cannot be written or read.
        """
        dtype = str(reference.dtype).removeprefix("torch.")
        weights = weight_hash(reference)
        name = f"{weights}-{dtype}"
        if autocast is not None:
            name += f"-under-{str(autocast).removeprefix('torch.')}"
        try:
            parent = cache_dir("reference") if root is None else Path(root).expanduser()
            folder = parent / name
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"reference cache: cannot create a folder ({error})") from error
        return cls(folder, reference, autocast, weights)

    def fill(
        self,
        prompts: Sequence[Ids],
        responses: Sequence[Ids],
        *,
        token_budget: int = 4096,
        progress: bool = True,
    ) -> FillReport:
        """Compute and store every row that is not there yet; returns when all rows are.

        prompts, responses: token ids of each row; equal rows are computed once
        token_budget:       input tokens of one forward
        progress:           show a bar if it takes more than a few seconds

        Processes that fill the same rows share the work, whether ``torch.distributed`` knows of
        them or not; a killed fill goes on where its last shard ended. With sharded (FSDP2) weights
        all processes compute the same chunks in step, and the first one writes.

        Raises ``UserError`` for a non-finite log-prob, and where the disk has too little room.
        """
        started = time.monotonic()
        rows = _distinct(prompts, responses)
        chunks = _chunks(rows, _CHUNK_BUDGETS * token_budget)
        missing = self._missing(list(rows))
        found = len(rows) - len(missing)
        self._check_room(sum(len(rows[key][1]) for key in missing))
        fill = self._fill_in_step if self._is_sharded() else self._fill_shared
        with _bar(len(rows), found, progress) as bar:
            computed = fill(rows, chunks, token_budget, bar)
        return FillReport(len(rows), found, computed, time.monotonic() - started)

    def lookup(self, prompts: Sequence[Ids], responses: Sequence[Ids]) -> list[Tensor]:
        """The stored log-probs: one float32 tensor [T_i] (nats, on the CPU) a row, in order.

        Raises ``UserError`` saying how many rows are missing.
        """
        keys = [
            row_key(prompt, response) for prompt, response in zip(prompts, responses, strict=True)
        ]
        missing = self._missing(keys)
        if missing:
            raise UserError(
                f"reference cache {self.folder} lacks {len(missing)} of {len(keys)} rows, first "
                f"row {keys.index(missing[0])}: fill it with these prompts and responses first"
            )
        found = [place for place in self._shards.find(keys) if place is not None]
        return [shard.logps(row) for shard, row in found]

    def stats(self) -> CacheStats:
        """Count what lies on disk now, other processes' shards included."""
        self._shards.refresh()
        return CacheStats(
            rows=self._shards.rows,
            shards=len(self._shards.shards),
            bytes=sum(shard.path.stat().st_size for shard in self._shards.shards),
            corrupt=len(self._shards.corrupt),
        )

    def _missing(self, keys: Sequence[bytes]) -> list[bytes]:
        missing = self._absent(keys)
        if missing:
            self._shards.refresh()
            missing = self._absent(missing)
        return missing

    def _absent(self, keys: Sequence[bytes]) -> list[bytes]:
        places = self._shards.find(keys)
        return [key for key, place in zip(keys, places, strict=True) if place is None]

    def _fill_shared(
        self, rows: "_Rows", chunks: Sequence[Sequence[bytes]], token_budget: int, bar: tqdm
    ) -> int:
        """Take chunks that no other process holds; at the end wait for those that others hold."""
        computed = 0
        held_by_others: list[Sequence[bytes]] = []
        with _Writer(self._shards) as writer:
            for chunk in chunks:
                if not self._absent(chunk):
                    continue
                if not writer.claim(chunk, wait=False):
                    held_by_others.append(chunk)
                    continue
                computed += self._compute(rows, chunk, token_budget, writer, bar)
        with _Writer(self._shards) as writer:
            for chunk in held_by_others:
                # Blocks until the other process is done with it, or has died.
                writer.claim(chunk, wait=True)
                computed += self._compute(rows, chunk, token_budget, writer, bar)
                writer.flush()
        self._shards.refresh()
        return computed

    def _fill_in_step(
        self, rows: "_Rows", chunks: Sequence[Sequence[bytes]], token_budget: int, bar: tqdm
    ) -> int:
        """Every process makes the same forwards, because each one is collective."""
        first = torch.distributed.get_rank() == 0
        agreed: list[list[bytes]] = [self._missing(list(rows))]
        torch.distributed.broadcast_object_list(agreed)
        wanted = set(agreed[0])
        with _Writer(self._shards) as writer:
            for chunk in chunks:
                todo = [key for key in chunk if key in wanted]
                if not todo:
                    continue
                logps = self._score(rows, todo, token_budget)
                if first:
                    writer.add(todo, logps)
                bar.update(len(todo))
        torch.distributed.barrier()
        self._shards.refresh()
        return len(wanted)

    def _compute(
        self,
        rows: "_Rows",
        chunk: Sequence[bytes],
        token_budget: int,
        writer: "_Writer",
        bar: tqdm,
    ) -> int:
        todo = self._missing(chunk)
        if todo:
            writer.add(todo, self._score(rows, todo, token_budget))
        bar.update(len(todo))
        return len(todo)

    def _score(self, rows: "_Rows", keys: Sequence[bytes], token_budget: int) -> list[Tensor]:
        from tokenq.models.logps import token_logps

        if self.reference is None:
            raise UserError(f"reference cache {self.folder}: its model was released; open it again")
        prompts = [rows[key][0] for key in keys]
        responses = [rows[key][1] for key in keys]
        with scoring(self.reference) as model, running_in(self.autocast, model):
            logps = token_logps(model, prompts, responses, token_budget=token_budget)
        logps = [row.float().cpu() for row in logps]
        for prompt, response, row in zip(prompts, responses, logps, strict=True):
            if not bool(torch.isfinite(row).all()):
                place = int((~torch.isfinite(row)).nonzero()[0])
                raise UserError(
                    f"the reference gives log-prob {row[place].item()} to token {response[place]} "
                    f"at place {place} "
                    f"of a response after a prompt of {len(prompt)} tokens; accepted: finite values"
                )
        return logps

    def _is_sharded(self) -> bool:
        model = self.reference
        module = model.peft_model if isinstance(model, AdapterOff) else model
        return module is not None and any(isinstance(p, DTensor) for p in module.parameters())

    def _check_room(self, tokens: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if 4 * tokens > free:
            raise UserError(
                f"reference cache {self.folder}: {tokens} log-probs need {4 * tokens / 1e6:.0f} "
                "MB, the disk has "
                f"{free / 1e6:.0f} MB free"
            )


_Rows = dict[bytes, tuple[Ids, Ids]]


def row_key(prompt: Ids, response: Ids) -> bytes:
    """Digest [16 bytes] of a row's token ids; the boundary between prompt and response counts."""
    digest = hashlib.blake2b(len(prompt).to_bytes(8, "little"), digest_size=KEY_BYTES)
    digest.update(np.asarray(prompt, dtype="<i8").tobytes())
    digest.update(np.asarray(response, dtype="<i8").tobytes())
    return digest.digest()


def _distinct(prompts: Sequence[Ids], responses: Sequence[Ids]) -> _Rows:
    return {
        row_key(prompt, response): (prompt, response)
        for prompt, response in zip(prompts, responses, strict=True)
    }


def _chunks(rows: _Rows, tokens: int) -> list[list[bytes]]:
    """Split rows into chunks of about ``tokens`` tokens, answers of one prompt together.

    The split depends on the rows alone, not on what is cached, so that processes that fill the
    same rows agree on it.
    """
    by_prompt: dict[tuple[int, ...], list[bytes]] = {}
    for key, (prompt, _) in rows.items():
        by_prompt.setdefault(tuple(prompt), []).append(key)
    chunks: list[list[bytes]] = [[]]
    size = 0
    for prompt, keys in by_prompt.items():
        extra = len(prompt) + sum(len(rows[key][1]) for key in keys)
        if chunks[-1] and size + extra > tokens:
            chunks.append([])
            size = 0
        chunks[-1].extend(keys)
        size += extra
    return chunks


class _Writer:
    """Rows that are computed but not yet on disk, and the claims on their chunks.

    Claims are released after the rows are written, so that whoever waits for one finds them.
    """

    def __init__(self, shards: ShardFolder) -> None:
        self._shards = shards
        self._claims = ExitStack()
        self._keys: list[bytes] = []
        self._logps: list[Tensor] = []
        self._flushed = time.monotonic()

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_: object) -> None:
        # Also after an error or an interrupt: what is computed is kept.
        self.flush()

    def claim(self, chunk: Sequence[bytes], *, wait: bool) -> bool:
        name = hashlib.blake2b(b"".join(chunk), digest_size=KEY_BYTES).hexdigest()
        lock = FileLock(self._shards.folder / f"{name}.lock", timeout=-1 if wait else 0)
        try:
            self._claims.enter_context(lock)
        except Timeout:
            return False
        # Without its file a lock is free for all: at worst two processes compute the same rows.
        self._claims.callback(Path(lock.lock_file).unlink, missing_ok=True)
        return True

    def add(self, keys: Sequence[bytes], logps: Sequence[Tensor]) -> None:
        self._keys.extend(keys)
        self._logps.extend(logps)
        late = time.monotonic() - self._flushed > FLUSH_SECONDS
        if late or len(self._keys) >= _FLUSH_ROWS:
            self.flush()

    def flush(self) -> None:
        try:
            if self._keys:
                self._shards.write(self._keys, self._logps)
                self._keys, self._logps = [], []
        finally:
            self._claims.close()
            self._flushed = time.monotonic()


@contextmanager
def _bar(total: int, found: int, progress: bool) -> Iterator[tqdm]:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    first = not distributed or torch.distributed.get_rank() == 0
    with tqdm(
        total=total,
        initial=found,
        desc="reference log-probs",
        unit="row",
        delay=_PROGRESS_DELAY_SECONDS,
        disable=not (progress and first),
    ) as bar:
        yield bar
