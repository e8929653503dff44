"""The disk tier of a cache: one safetensors file per entry, in a folder that processes share.

Nothing is locked. An entry is written to a temporary file, synced and renamed, so that a reader
finds a whole file or none, and whoever deletes one merely causes a miss. A file is believed only
if its header names this format and the key that was asked for, and its checksum fits.
"""

from __future__ import annotations

import json
import os
import re
import stat
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as serialise

from qvl_lab.errors import ConfigError

#: Raise it when the files change, or when what the engine computes for a key does.
VERSION = 1
MAX_HEADER_BYTES = 2**20
#: Temporary files older than this were left by a process that died: no write takes an hour.
UNFINISHED_S = 3600.0
_ENTRY = re.compile(r"[0-9a-f]{64}\.safetensors")
_UNFINISHED = re.compile(r"[0-9a-f]{64}\.\w+\.tmp")

Tensors = dict[str, torch.Tensor]


class DiskTier:
    """Named tensors by key, in a folder.

    A damaged or foreign file under an entry's name is deleted with a warning and is a miss; files
    of other names are left alone. When the disk is full or the folder cannot be used any more, the
    tier turns itself off with one warning, and every later call does nothing.

    Parameters
    ----------
    folder : Path
        Made if it is not there, readable by its owner only. Several processes may share it.
    max_bytes : int
        Bound on all entries together: the least recently used ones are deleted after each save.
    max_age_s : float, optional
        Entries written longer ago are misses, and are deleted.
    clock : callable
        Seconds since the epoch.

    Attributes
    ----------
    off : str or None
        Why the tier is off; None while it is on.

    Raises
    ------
    ConfigError
        If the folder cannot be made, read or written.
    """

    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        max_age_s: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.folder, self.max_bytes, self.max_age_s = Path(folder), max_bytes, max_age_s
        self.off: str | None = None
        self._clock, self._lock = clock, threading.Lock()
        self._known_bytes = 0  # at the last listing, and what was written since
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not os.access(self.folder, os.R_OK | os.W_OK | os.X_OK):
                raise PermissionError("it may not be read or written")
            self._tidy()
        except OSError as e:
            raise ConfigError(
                f"the cache folder {self.folder} cannot be used: {e.strerror or e}. Give a folder "
                "that this user may write to, or switch the disk cache off"
            ) from e

    @property
    def bytes(self) -> int:
        """Size of all entries now, those of other processes too; 0 once the tier is off."""
        if self.off is None:
            try:
                return sum(size for _, size, _ in self._files(_ENTRY))
            except OSError as e:
                self._turn_off(e)
        return 0

    def load(self, key: str) -> tuple[Tensors, float] | None:
        """The tensors of a key, on the CPU, and the seconds that computing them once took.

        None if there is no usable entry. A hit makes the entry the most recently used one.
        """
        if self.off is not None:
            return None
        path = self._path(key)
        try:
            return self._load(path, key)
        except FileNotFoundError:  # never there, or deleted by another process this moment
            return None
        except OSError as e:
            self._turn_off(e)
            return None

    def save(
        self, key: str, tensors: Mapping[str, torch.Tensor], cost_s: float, *, tidy: bool = True
    ) -> None:
        """Keep tensors, which took ``cost_s`` seconds to compute.

        This waits for the device and for the disk. An entry that is over ``max_bytes`` alone is not
        kept.

        Parameters
        ----------
        tidy : bool
            List the folder to evict what is over the bounds, other processes' entries included.
            Without it the folder is listed only when what this tier knows of is over ``max_bytes``.
        """
        if self.off is not None or sum(t.nbytes for t in tensors.values()) > self.max_bytes:
            return
        now = self._clock()
        data = _pack(key, tensors, cost_s, created=now)
        if len(data) > self.max_bytes:
            return
        try:
            _write(self._path(key), data, now)
            with self._lock:
                self._known_bytes += len(data)
            if tidy or self._known_bytes > self.max_bytes:
                self._tidy()
        except OSError as e:
            self._turn_off(e)

    def _path(self, key: str) -> Path:
        return self.folder / f"{sha256(key.encode()).hexdigest()}.safetensors"

    def _load(self, path: Path, key: str) -> tuple[Tensors, float] | None:
        now = self._clock()
        try:
            if not stat.S_ISREG(path.lstat().st_mode):
                raise ValueError("it is no ordinary file")
            with path.open("rb") as file:
                tensors, cost_s, created = _unpack(file, key, self.max_bytes)
                if not self._too_old(created, now):
                    os.utime(file.fileno(), (now, now))
                    return tensors, cost_s
        except ValueError as e:
            path.unlink(missing_ok=True)
            warnings.warn(f"the cache file {path} was deleted: {e}", stacklevel=3)
        else:
            path.unlink(missing_ok=True)
        return None

    def _tidy(self) -> None:
        """Delete old entries, and the least recently used ones until the rest fits."""
        now, total, kept = self._clock(), 0, 0
        for used, size, path in self._files(_ENTRY):
            total += size
            if total > self.max_bytes or self._too_old(used, now):
                path.unlink(missing_ok=True)
            else:
                kept += size
        with self._lock:
            self._known_bytes = kept
        for written, _, path in self._files(_UNFINISHED):
            if now - written > UNFINISHED_S:
                path.unlink(missing_ok=True)

    def _too_old(self, written: float, now: float) -> bool:
        return self.max_age_s is not None and now - written > self.max_age_s

    def _files(self, pattern: re.Pattern[str]) -> list[tuple[float, int, Path]]:
        """(time of last use, bytes, path) of ordinary files, the latest first."""
        found = []
        with os.scandir(self.folder) as listing:
            for file in listing:
                if not pattern.fullmatch(file.name):
                    continue
                with suppress(FileNotFoundError):  # deleted by another process this moment
                    status = file.stat(follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode):
                        found.append((status.st_mtime, status.st_size, Path(file.path)))
        return sorted(found, reverse=True)

    def _turn_off(self, error: OSError) -> None:
        with self._lock:
            first = self.off is None
            self.off = self.off or str(error)
        if first:
            warnings.warn(
                f"the disk cache in {self.folder} is off for the rest of this run: {error}. "
                "Results are not affected; free some space or mend the folder before the next run",
                stacklevel=3,
            )


def _write(path: Path, data: bytes, now: float) -> None:
    """Write a file whole, or leave what was there; ``now`` becomes its time of last use."""
    handle, name = tempfile.mkstemp(prefix=f"{path.stem}.", suffix=".tmp", dir=path.parent)
    unfinished = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.utime(unfinished, (now, now))
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _pack(key: str, tensors: Mapping[str, torch.Tensor], cost_s: float, created: float) -> bytes:
    """The bytes of an entry, made from copies: the checksum holds whoever writes to the tensors."""
    copies = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    metadata = {
        "version": str(VERSION),
        "key": key,
        "cost_s": repr(float(cost_s)),
        "created": repr(float(created)),
    }
    return serialise(copies, metadata | {"checksum": _checksum(metadata, copies)})


def _unpack(file: BinaryIO, key: str, max_bytes: int) -> tuple[Tensors, float, float]:
    """Tensors, cost_s and created of an entry; a ValueError says why the file is not usable."""
    size = os.fstat(file.fileno()).st_size
    if size > max_bytes:
        raise ValueError(f"its {size:,} bytes are over the limit of {max_bytes:,}")
    metadata = _metadata(file, size)
    if metadata.get("version") != str(VERSION):
        raise ValueError(f"it is not of format version {VERSION}")
    if metadata.get("key") != key:
        raise ValueError("it holds the entry of another key")
    file.seek(0)
    data = file.read(size)
    try:
        tensors = parse_tensors(data)
    except MemoryError:
        raise
    except Exception as e:  # foreign bytes fail in many ways
        raise ValueError(f"it is damaged or truncated ({e})") from e
    checksum = metadata.pop("checksum", None)
    if checksum != _checksum(metadata, tensors):
        raise ValueError("it is damaged: its checksum does not fit")
    return tensors, float(metadata.get("cost_s", "")), float(metadata.get("created", ""))


def _metadata(file: BinaryIO, size: int) -> dict[str, Any]:
    """The header's metadata. The format is 8 bytes of length, JSON, data."""
    header_bytes = int.from_bytes(file.read(8), "little")
    if not 0 < header_bytes <= min(size - 8, MAX_HEADER_BYTES):
        raise ValueError("it is truncated or no safetensors file")
    try:
        header = json.loads(file.read(header_bytes))
    except (ValueError, RecursionError) as e:
        raise ValueError("its header is damaged, or it is no safetensors file") from e
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    return metadata if isinstance(metadata, dict) else {}


def _checksum(metadata: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over the other metadata, then each tensor's name, dtype, shape and data, by name."""
    total = sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        total.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
