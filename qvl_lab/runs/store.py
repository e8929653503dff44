"""Run files: append-only JSON lines that survive being killed.

Each turn of a setting is a line, written and synced to disk before the next one starts; the turns
of a setting are joined while reading. A last line torn by a
crash is cut off on the next append; rows of another schema or environment are never mixed in
silently. Answers go to a file beside it, ``runs.answers.jsonl`` for ``runs.jsonl``, one line each.
A hidden file beside it, ``.runs.jsonl.lock``, is locked while somebody writes.
"""

from __future__ import annotations

import contextlib
import html
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self, overload

from filelock import FileLock, Timeout

from qvl_lab.errors import StoreError
from qvl_lab.runs.records import Run, environment_key, joined

if TYPE_CHECKING:
    import pandas as pd


ANSWER_COLUMNS = ("run", "environment", "id", "task", "question", "expected", "answer")

#: The columns of a frame that a notebook shows of runs.
_SHOWN = (
    *("model", "engine", "precision", "resolution", "batch_size", "status"),
    *("images_per_s", "ttft_s", "quality"),
)


class Runs(Sequence[Run]):
    """Runs read from a file or made in memory.

    Attributes
    ----------
    path : Path or None
        Where they came from.
    notes : list of str
        What was left out while reading, in words.
    """

    def __init__(
        self, runs: Iterable[Run] = (), *, path: Path | None = None, notes: Iterable[str] = ()
    ) -> None:
        self._runs, self.path, self.notes = list(runs), path, list(notes)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a run file.

        Damaged lines and rows of other schema versions are left out; ``notes`` says which.

        Raises
        ------
        StoreError
            If the file cannot be read or holds no usable row.
        """
        path = Path(path)
        try:
            data = path.read_bytes()
        except OSError as e:
            raise StoreError(f"cannot read the run file {path}: {e.strerror}") from e
        runs, notes = _parse(data, path)
        if not runs:
            why = f" ({'; '.join(notes)})" if notes else ""
            raise StoreError(f"{path} holds no runs{why}; write one with 'qvl-lab sweep'")
        return cls(_settings(runs), path=path, notes=notes)

    @overload
    def __getitem__(self, index: int) -> Run: ...

    @overload
    def __getitem__(self, index: slice) -> Self: ...

    def __getitem__(self, index: int | slice) -> Run | Self:
        if isinstance(index, slice):
            return type(self)(self._runs[index], path=self.path, notes=self.notes)
        return self._runs[index]

    def __len__(self) -> int:
        return len(self._runs)

    def __repr__(self) -> str:
        statuses = Counter(run.status for run in self._runs)
        words = ", ".join(f"{count} {status}" for status, count in statuses.most_common())
        name = f" {self.path.name}" if self.path else ""
        rows = "1 row" if len(self) == 1 else f"{len(self)} rows"
        return f"<Runs{name}: {rows}{f' ({words})' if words else ''}>"

    def _repr_html_(self) -> str:
        """The settings and their throughput as a table."""
        table = self.frame()
        shown = [name for name in _SHOWN if name in table]
        rows: str = table[shown].to_html(
            index=False, border=0, max_rows=12, na_rep="", float_format="{:.3g}".format
        )
        return f"<b>{html.escape(repr(self)[1:-1])}</b>{rows if len(self) else ''}"

    def frame(self) -> pd.DataFrame:
        """The runs as a table: see :func:`qvl_lab.analysis.frame.frame`.

        Where no true answer is known, quality is the agreement with the answers of the most exact
        setting; see :func:`qvl_lab.analysis.quality.tradeoffs.with_agreement`.
        """
        from qvl_lab.analysis.frame import frame
        from qvl_lab.analysis.quality.tradeoffs import has_answers, with_agreement

        table = frame(self._runs)
        if table.empty or has_answers(table).all():
            return table
        return with_agreement(table, self.answers())

    def answers(self) -> pd.DataFrame:
        """Every answer: ``run`` (its key), ``environment``, ``id``, ``task``, ``question``,
        ``expected``, ``answer``; the last three are text or None.

        Empty for runs without answers, such as those of random weights.
        """
        import pandas as pd

        rows = [row for run in self._runs for row in _answer_rows(run)]
        if self.path and not rows:
            rows = _read_answers(answers_path(self.path))
        table = pd.DataFrame(rows, columns=[*ANSWER_COLUMNS, "item"], dtype=object)
        table["item"] = table["item"].fillna(table["id"])  # files from before items had numbers
        mine = {(run.key, environment_key(run.environment)) for run in self._runs}
        pairs = zip(table["run"], table["environment"], strict=True)
        kept = pd.Series([pair in mine for pair in pairs], table.index, dtype=bool)
        table = table[kept].drop_duplicates(["run", "environment", "item"], keep="last")
        return table.drop(columns="item").reset_index(drop=True)

    @property
    def file_sha256(self) -> str | None:
        """The run file's hash, for provenance."""
        return sha256(self.path.read_bytes()).hexdigest() if self.path else None

    def environments(self) -> list[dict[str, Any]]:
        """The distinct environments, in order of first appearance."""
        found = {environment_key(run.environment): run.environment for run in self._runs}
        return list(found.values())


class Store:
    """A run file open for appending; use as a context manager.

    Raises
    ------
    StoreError
        On opening: if another process is writing to it, it cannot be written, or it holds rows of
        another schema version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = self.path.open("a+b")
        except OSError as e:
            raise StoreError(f"cannot write the run file {self.path}: {e.strerror}") from e
        self._lock = FileLock(self.path.with_name(f".{self.path.name}.lock"), timeout=0)
        try:
            self._lock.acquire()
            self.runs = self._read()
        except BaseException as e:
            self._close()
            if isinstance(e, Timeout):
                raise StoreError(
                    f"{self.path} is being written by another sweep; wait for it or choose "
                    "another file"
                ) from e
            if isinstance(e, OSError):
                raise StoreError(f"cannot lock the run file {self.path}: {e.strerror}") from e
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self) -> None:
        self._file.close()
        self._lock.release()

    def append(self, run: Run) -> None:
        """Write one row and sync it to disk.

        Raises
        ------
        StoreError
            If the row cannot be written, say on a full disk; the rows before it are untouched.
        """
        size = self._file.seek(0, os.SEEK_END)
        kept = replace(run, answers=[])
        try:
            self._append_answers(run)  # first: a row in the run file has its answers
            self._file.write(kept.to_json().encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as e:
            self._restore(size)
            raise StoreError(
                f"cannot write to {self.path}: {e.strerror}. All {len(self.runs)} finished rows "
                "are kept; free some space and run the same command again"
            ) from e
        self._lines.append(kept)
        self.runs = Runs(_settings(self._lines), path=self.path, notes=self.runs.notes)

    def _append_answers(self, run: Run) -> None:
        if not run.answers:
            return
        rows = _answer_rows(run)
        lines = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows]
        text = "\n".join(lines) + "\n"
        with answers_path(self.path).open("a+b") as file:
            if file.tell():  # a crash may have torn the last line
                file.seek(-1, os.SEEK_END)
                text = text if file.read(1) == b"\n" else "\n" + text
            file.write(text.encode("utf-8", "backslashreplace"))
            file.flush()
            os.fsync(file.fileno())

    def set_aside(self) -> Path:
        """Move the rows to ``NAME.1.jsonl`` (2, 3, ...) and go on with an empty file.

        Raises
        ------
        StoreError
            If they cannot be written there; they stay where they are.
        """
        number = 1
        while (target := self._aside(number)).exists() or answers_path(target).exists():
            number += 1
        self._file.seek(0)
        try:
            with target.open("xb") as copy:
                copy.write(self._file.read())
                copy.flush()
                os.fsync(copy.fileno())
            with contextlib.suppress(FileNotFoundError):
                answers_path(self.path).replace(answers_path(target))
        except OSError as e:
            target.unlink(missing_ok=True)
            raise StoreError(f"cannot move the rows to {target}: {e.strerror}") from e
        self._file.truncate(0)
        self._lines.clear()
        self.runs = Runs(path=self.path)
        return target

    def _aside(self, number: int) -> Path:
        return self.path.with_suffix(f".{number}{self.path.suffix}")

    def _read(self) -> Runs:
        self._file.seek(0)
        data = self._file.read()
        runs, notes = _parse(data, self.path)
        foreign = [note for note in notes if "schema version" in note]
        if foreign:
            raise StoreError(f"{self.path} cannot be continued: {foreign[0]}. Choose another file")
        if data and not data.endswith(b"\n"):
            self._mend_last_line(data)
        self._lines: list[Run] = runs
        return Runs(_settings(runs), path=self.path, notes=notes)

    def _mend_last_line(self, data: bytes) -> None:
        """End a complete last row with the line break it lacks; cut off a torn one."""
        start = data.rfind(b"\n") + 1
        try:
            Run.from_json(data[start:])
        except StoreError:
            self._restore(start)
        else:
            self._file.write(b"\n")
            self._file.flush()

    def _restore(self, size: int) -> None:
        """Cut the file back to whole lines."""
        with contextlib.suppress(OSError):  # a full disk: what is still buffered is dropped
            self._file.close()
        os.truncate(self.path, size)
        self._file = self.path.open("a+b")


def answers_path(path: Path) -> Path:
    """Where the answers of a run file are."""
    return path.with_suffix(f".answers{path.suffix}")


def _answer_rows(run: Run) -> list[dict[str, str | None]]:
    """A run's answers with what tells them from others; ``item`` numbers them, as a text."""
    of = {"run": run.key, "environment": environment_key(run.environment)}
    rows = [of | answer | {"item": str(i)} for i, answer in enumerate(run.answers)]
    return [{name: row[name] for name in (*ANSWER_COLUMNS, "item")} for row in rows]


def _read_answers(path: Path) -> list[dict[str, str | None]]:
    """Whole lines; a torn or foreign one is passed over, its run file names what is missing."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return []
    rows = []
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            known = isinstance(row, dict) and row.keys() >= set(ANSWER_COLUMNS)
            if known and all(isinstance(v, str | None) for v in row.values()):
                rows.append(row)
    return rows


def _parse(data: bytes, path: Path) -> tuple[list[Run], list[str]]:
    runs: list[Run] = []
    notes: list[str] = []
    for number, line, complete in _lines(data):
        try:
            runs.append(Run.from_json(line))
        except (StoreError, TypeError) as e:
            why = str(e) if complete else "torn by a crash; its configuration runs again"
            notes.append(f"line {number} of {path.name} is left out: {why}")
    return runs, notes


def _lines(data: bytes) -> Iterator[tuple[int, bytes, bool]]:
    lines = data.split(b"\n")
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, line, number < len(lines)


def _settings(lines: Iterable[Run]) -> list[Run]:
    """One run per key and environment, its turns joined, in order of first appearance."""
    by_key: dict[tuple[str, str], list[Run]] = {}
    for run in lines:
        by_key.setdefault((run.key, environment_key(run.environment)), []).append(run)
    return [joined(turns) for turns in by_key.values()]
