"""The files of the reference cache: shards of rows, and the index that finds a row in them.

A shard is a safetensors file that is whole or absent, never changed, and carries a checksum of its
content. Processes write shards under names of their own, so that none has to wait for another.
"""

import functools
import hashlib
import logging
import os
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tokenq.storage import atomic_file

KEY_BYTES = 16

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shard:
    """One verified file. Keys and offsets are in memory, log-probs stay on disk (memory-mapped)."""

    path: Path
    keys: NDArray[np.uint8]
    offsets: NDArray[np.int64]

    def logps(self, row: int) -> Tensor:
        """[T] float32 of one row, read from disk."""
        start, end = int(self.offsets[row]), int(self.offsets[row + 1])
        return _opened(self.path).get_slice("logps")[start:end]


@functools.lru_cache(maxsize=256)
def _opened(path: Path) -> Any:
    # Stays memory-mapped: reading the header anew for each row would cost more than the row.
    return safe_open(path, framework="pt")


class ShardFolder:
    """All verified shards of a folder, with about 50 bytes a row in memory to find them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards: list[Shard] = []
        self.corrupt: list[Path] = []
        self._known: set[Path] = set()
        self._prefixes: NDArray[np.uint64] = np.empty(0, np.uint64)
        self._places: NDArray[np.int64] = np.empty((0, 2), np.int64)

    def refresh(self) -> None:
        """Take in the shards that this or another process has written since the last look."""
        new = sorted(set(self.folder.glob("*.safetensors")) - self._known)
        if not new:
            return
        self._known.update(new)
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            read = list(pool.map(read_shard, new))
        for path, shard in zip(new, read, strict=True):
            if isinstance(shard, Shard):
                self.shards.append(shard)
            else:
                self._reject(path, shard)
        self._index()

    def write(self, keys: Sequence[bytes], logps: Sequence[Tensor]) -> None:
        """Write rows as one new shard; they can be found after the next :meth:`refresh`."""
        path = self.folder / f"{uuid.uuid4().hex}.safetensors"
        lengths = torch.tensor([0, *map(len, logps)])
        tensors = {
            "keys": torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).view(
                -1, KEY_BYTES
            ),
            "offsets": lengths.cumsum(0),
            "logps": torch.cat(list(logps)).float().cpu().contiguous(),
        }
        with atomic_file(path) as temporary:
            save_file(tensors, temporary, metadata={"checksum": checksum(tensors)})

    def find(self, keys: Sequence[bytes]) -> list[tuple[Shard, int] | None]:
        """Where each row lies, or None for a row that is not there."""
        wanted = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES)
        prefixes = _prefixes(wanted)
        starts = np.searchsorted(self._prefixes, prefixes, side="left")
        ends = np.searchsorted(self._prefixes, prefixes, side="right")
        return [
            self._match(key, range(start, end))
            for key, start, end in zip(wanted, starts.tolist(), ends.tolist(), strict=True)
        ]

    @property
    def rows(self) -> int:
        """Rows over all shards; a row that two processes computed counts twice."""
        return len(self._prefixes)

    def _match(self, key: NDArray[np.uint8], candidates: range) -> tuple[Shard, int] | None:
        for candidate in candidates:
            shard_number, row = self._places[candidate].tolist()
            shard = self.shards[shard_number]
            if np.array_equal(shard.keys[row], key):
                return shard, row
        return None

    def _index(self) -> None:
        if not self.shards:
            return
        prefixes = np.concatenate([_prefixes(shard.keys) for shard in self.shards])
        places = np.concatenate(
            [
                np.stack([np.full(len(shard.keys), number), np.arange(len(shard.keys))], axis=1)
                for number, shard in enumerate(self.shards)
            ]
        )
        order = np.argsort(prefixes, kind="stable")
        self._prefixes, self._places = prefixes[order], places[order]

    def _reject(self, path: Path, reason: str) -> None:
        logger.warning(
            "reference cache: %s is damaged (%s); its rows are computed again", path, reason
        )
        self.corrupt.append(path)
        if os.access(self.folder, os.W_OK):
            path.unlink(missing_ok=True)


def read_shard(path: Path) -> Shard | str:
    """The shard, its checksum verified, or what is wrong with it."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in ("keys", "offsets", "logps")}
    except (SafetensorError, OSError) as error:
        return str(error)
    if metadata.get("checksum") != checksum(tensors):
        return "checksum differs"
    return Shard(path, tensors["keys"].numpy().copy(), tensors["offsets"].numpy().copy())


def checksum(tensors: dict[str, Tensor]) -> str:
    """Hex digest (128 bits) of names, types, shapes and values."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        values = tensors[name].contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _prefixes(keys: NDArray[np.uint8]) -> NDArray[np.uint64]:
    return np.ascontiguousarray(keys[:, :8]).view(np.uint64).reshape(-1)
