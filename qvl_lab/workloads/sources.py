"""Reading workloads from folders, CSV and JSONL files, packaged sets and images in hand.

A table has the columns id, image, question, reference (or answer), task; its paths are relative to
the file. Files are only listed here: bytes are read when an item is used, and one bad row never
stops the others.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qvl_lab.assets import asset
from qvl_lab.errors import UnknownNameError, WorkloadError
from qvl_lab.workloads.items import DEFAULT_QUESTION, ImageLike, Item, Workload

PACKAGED = ("evaluation", "mixed")
COLUMNS = ("id", "image", "question", "reference", "answer", "task")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ""})
MAX_ITEMS = 1_000_000


def load_workload(
    source: str | Path | Workload | Sequence[ImageLike],
    *,
    question: str | None = None,
    task: str | None = None,
) -> Workload:
    """Read a workload.

    Parameters
    ----------
    source : str, Path, Workload or sequence of images
        ``"mixed"`` or another packaged set, a folder (searched with its subfolders), an image,
        a CSV or JSONL file, or images in hand.
    question, task : str, optional
        For items that bring none of their own.

    Raises
    ------
    WorkloadError
        If nothing in it can be used. Single bad rows are listed in ``errors`` instead.
    """
    if isinstance(source, Workload):
        return source
    defaults: dict[str, Any] = {"question": question or DEFAULT_QUESTION, "task": task}
    if not isinstance(source, str | Path):
        items = tuple(Item(_label(im, i), im, **defaults) for i, im in enumerate(source))
        return _not_empty(Workload("images", items))
    if str(source) in PACKAGED:
        source = asset(f"data/{source}") / f"{source}.jsonl"
    path = Path(source)
    if path.is_dir():
        return _from_folder(path, defaults)
    if path.suffix.lower() in (".csv", ".jsonl"):
        return _from_table(path, defaults)
    if path.is_file():
        return Workload(path.name, (Item(path.name, path, **defaults),))
    if path.parent == Path() and not path.suffix:
        raise UnknownNameError("workload, folder or file", str(source), PACKAGED)
    raise WorkloadError(f"{path} does not exist; give a folder, a .csv, a .jsonl or an image")


def _from_folder(folder: Path, defaults: dict[str, Any]) -> Workload:
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and not _hidden(p, folder)]
    names = [p.relative_to(folder).as_posix() for p in files]
    wanted = [(n, p) for n, p in zip(names, files, strict=True) if p.suffix.lower() in SUFFIXES]
    items = tuple(Item(name, path, **defaults) for name, path in wanted)
    ignored = tuple(sorted(set(names) - {name for name, _ in wanted}))
    return _not_empty(Workload(folder.resolve().name, items, ignored=ignored))


def _from_table(path: Path, defaults: dict[str, Any]) -> Workload:
    try:
        rows = _csv_rows(path) if path.suffix.lower() == ".csv" else _jsonl_rows(path)
    except OSError as e:
        raise WorkloadError(f"cannot read {path}: {e.strerror}") from e
    items: list[Item] = []
    errors: list[dict[str, str]] = []
    for number, row in rows:
        try:
            items.append(_item(row, path.parent, f"{path.name}:{number}", defaults))
        except WorkloadError as e:
            errors.append({"id": f"{path.name}:{number}", "error": str(e)})
    repeated = len(items) - len({item.id for item in items})
    if repeated:
        items = [replace(item, id=f"{i}:{item.id}") for i, item in enumerate(items)]
    return _not_empty(Workload(path.stem, tuple(items), tuple(errors)))


def _csv_rows(path: Path) -> list[tuple[int, Any]]:
    rows: list[tuple[int, Any]] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            for row in reader:
                surplus = any(row.pop(None, ()))  # empty ones are trailing commas
                values = {k: v for k, v in row.items() if v}
                rows.append((reader.line_num, _SURPLUS if surplus else values))
    except (csv.Error, UnicodeDecodeError) as e:
        raise WorkloadError(f"{path} is not a readable CSV in UTF-8: {e}") from e
    return rows


_SURPLUS = "more values than columns; put quotes around a value that has a comma"


def _jsonl_rows(path: Path) -> list[tuple[int, Any]]:
    lines = path.read_bytes().splitlines()
    return [(number, _parsed(line)) for number, line in enumerate(lines, 1) if line.strip()]


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError as e:
        return f"not valid JSON: {e}"


def _item(row: Any, folder: Path, label: str, defaults: dict[str, Any]) -> Item:
    if not isinstance(row, dict):
        raise WorkloadError(row if isinstance(row, str) else f"not an object: {row!r}")
    values = {k: str(v) for k, v in row.items() if k in COLUMNS and v not in (None, "")}
    if "image" not in values:
        unknown = ", ".join(sorted(map(str, row))) or "nothing"
        raise WorkloadError(f"no column 'image' (allowed: {', '.join(COLUMNS)}); found {unknown}")
    path = Path(values.pop("image"))
    name = values.pop("id", None) or label
    answer = values.pop("answer", None)  # the older name of the column
    if answer is not None and values.setdefault("reference", answer) != answer:
        raise WorkloadError("the columns 'reference' and 'answer' differ; keep one of them")
    return Item(name, path if path.is_absolute() else folder / path, **{**defaults, **values})


def _not_empty(workload: Workload) -> Workload:
    if len(workload.items) > MAX_ITEMS:
        raise WorkloadError(f"{len(workload.items):,} items are over the limit of {MAX_ITEMS:,}")
    if workload.items:
        return workload
    why = f": {workload.errors[0]['error']}" if workload.errors else ""
    raise WorkloadError(
        f"workload {workload.name!r} has no usable item{why}; "
        f"images end in {', '.join(sorted(s for s in SUFFIXES if s))}"
    )


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _label(image: ImageLike, index: int) -> str:
    return Path(image).name if isinstance(image, str | Path) else f"image {index}"
