"""Reading workloads from folders, tables, packaged sets and images in hand.

Files are only listed here: bytes are read when an item is used. What cannot be used, a bad row or
a photo in a format that is not supported, is listed in ``Workload.errors`` and stops nothing.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from qvl_lab.assets import asset
from qvl_lab.errors import InputError, UnknownNameError, WorkloadError
from qvl_lab.workloads import tables
from qvl_lab.workloads.decode import UNSUPPORTED
from qvl_lab.workloads.in_hand import Images, images_in_hand, items_in_hand
from qvl_lab.workloads.items import DEFAULT_QUESTION, HINTED, Item, Workload, refuse_url

PACKAGED = ("evaluation", "mixed")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ""})
MAX_ITEMS = 1_000_000


def load_workload(
    source: Images,
    *,
    question: str | None = None,
    task: str | None = None,
) -> Workload:
    """Read a workload.

    Parameters
    ----------
    source : str, Path, Workload, image, iterable of images or DataFrame
        ``"mixed"`` or another packaged set, ``"mixed+hints"`` with a sentence behind each question
        that says how to answer; a folder (searched with its subfolders); an image; a
        table (.csv, .tsv, .jsonl, .json or a pandas DataFrame) with the columns id, image,
        question, reference (or answer; one, or a list of which any is right), task, of which only
        image is needed and whose paths are relative to the file; or images in hand: paths, bytes,
        PIL images, arrays, items.
    question, task : str, optional
        For items that bring none of their own.

    Returns
    -------
    Workload
        Its ids are the table's, or paths within the folder, or file names (whole paths where names
        are the same). Repeated ones are numbered: "b", "b#2".

    Raises
    ------
    WorkloadError
        If nothing in it can be used. Single bad rows are listed in ``errors`` instead.
    """
    if isinstance(source, Workload):
        return source
    defaults: dict[str, Any] = {"question": question or DEFAULT_QUESTION, "task": task}
    if hasattr(source, "columns") and hasattr(source, "to_dict"):
        return _from_rows("table", tables.frame_rows(source), Path(), "row", defaults)
    if not isinstance(source, str | Path):
        return _from_images(source, defaults)
    refuse_url(source)
    if str(source).removesuffix(HINTED) in PACKAGED and str(source) not in PACKAGED:
        packaged = load_workload(str(source).removesuffix(HINTED), question=question, task=task)
        return packaged.with_answer_hints()
    if str(source) in PACKAGED:
        source = asset(f"data/{source}") / f"{source}.jsonl"
    path = Path(source)
    if path.is_dir():
        return _from_folder(path, defaults)
    if path.suffix.lower() in tables.SUFFIXES:
        return _from_rows(path.stem, tables.table_rows(path), path.parent, path.name, defaults)
    if path.is_file():
        return Workload(path.name, (Item(path.name, path, **defaults),))
    if path.parent == Path() and not path.suffix:
        raise UnknownNameError("workload, folder or file", str(source), PACKAGED)
    raise WorkloadError(
        f"{path} does not exist; give a folder, a .csv, a .jsonl, a .json or an image"
    )


def _from_images(images: Images, defaults: dict[str, Any]) -> Workload:
    pictures = images_in_hand(images)
    for picture in pictures:
        refuse_url(picture)
    named = zip(pictures, items_in_hand(pictures), strict=True)
    items = tuple(i if isinstance(p, Item) else replace(i, **defaults) for p, i in named)
    return _not_empty(Workload("images", items))


def _from_folder(folder: Path, defaults: dict[str, Any]) -> Workload:
    items, errors, ignored = [], [], []
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or _hidden(path, folder):
            continue
        name, suffix = path.relative_to(folder).as_posix(), path.suffix.lower()
        if suffix in SUFFIXES:
            items.append(Item(name, path, **defaults))
        elif suffix in UNSUPPORTED:
            errors.append({"id": name, "error": UNSUPPORTED[suffix]})
        else:
            ignored.append(name)
    workload = Workload(folder.resolve().name, tuple(items), tuple(errors), tuple(sorted(ignored)))
    return _not_empty(workload, f"; images end in {', '.join(sorted(s for s in SUFFIXES if s))}")


def _from_rows(
    name: str, rows: tables.Rows, folder: Path, label: str, defaults: dict[str, Any]
) -> Workload:
    items: list[Item] = []
    errors: list[dict[str, str]] = []
    for number, row in rows:
        try:
            items.append(tables.row_item(row, folder, f"{label}:{number}", defaults))
        except InputError as e:
            errors.append({"id": f"{label}:{number}", "error": str(e)})
    return _not_empty(Workload(name, tuple(items), tuple(errors)))


def _not_empty(workload: Workload, hint: str = "") -> Workload:
    if len(workload.items) > MAX_ITEMS:
        raise WorkloadError(f"{len(workload.items):,} items are over the limit of {MAX_ITEMS:,}")
    if workload.items:
        return workload
    why = f": {workload.errors[0]['error']}" if workload.errors else ""
    raise WorkloadError(f"workload {workload.name!r} has no usable item{why}{hint}")


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)
