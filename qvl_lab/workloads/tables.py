"""Rows of a workload's table: CSV as spreadsheets write it, JSON Lines, a JSON list, a DataFrame.

Reading never stops at a bad row. A row that cannot be used is a string that says why; the others
are dicts, which :func:`row_item` turns into items.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from qvl_lab.errors import WorkloadError
from qvl_lab.workloads.items import Item, refuse_url

log = logging.getLogger(__name__)

#: "answer" is the older name of "reference".
COLUMNS = ("id", "image", "question", "reference", "answer", "task")
SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")
_SURPLUS = "more values than columns; put quotes around a value that has a comma"

Rows = Iterable[tuple[int, Any]]


def table_rows(path: Path) -> Rows:
    """The numbered rows of a table file: line numbers, or places in a JSON list from 1.

    Raises
    ------
    WorkloadError
        If the file cannot be read or is no table.
    """
    try:
        data = path.read_bytes()
    except OSError as e:
        raise WorkloadError(f"cannot read {path}: {e.strerror}") from e
    if not data.strip():
        raise WorkloadError(f"workload {path.stem!r} has no usable item: {path.name} is empty")
    return _json_rows(data) if path.suffix.lower().startswith(".json") else _csv_rows(data, path)


def frame_rows(frame: Any) -> Rows:
    """The rows of a pandas DataFrame, numbered from 0; missing values are left out."""
    # convert_dtypes: a column of whole numbers with gaps is one of floats, "3.0", until then
    for number, row in enumerate(frame.convert_dtypes().to_dict("records")):
        yield number, {str(k): v for k, v in row.items() if str(v) not in ("<NA>", "NaT", "nan")}


def row_item(row: Any, folder: Path, label: str, defaults: Mapping[str, Any]) -> Item:
    """The item of one row; paths are relative to ``folder``, and ``label`` is the spare id.

    Raises
    ------
    InputError
        If the row names no image file, or two true answers.
    """
    if not isinstance(row, Mapping):
        raise WorkloadError(row if isinstance(row, str) else f"not an object: {row!r}")
    image = row.get("image")
    if isinstance(image, list | tuple):
        raise WorkloadError("several images in one item are not supported; give each its own row")
    if isinstance(image, Mapping):
        raise WorkloadError("the column 'image' must hold a path, not an object")
    if image in (None, ""):
        found = ", ".join(sorted(map(str, row))) or "nothing"
        raise WorkloadError(f"no column 'image' (allowed: {', '.join(COLUMNS)}); found {found}")
    if not isinstance(image, bytes | Image.Image):
        refuse_url(str(image))
        image = folder / str(image)  # an absolute path stays as it is
    values = {k: _as_text(v) for k, v in row.items() if k in COLUMNS and v not in (None, "")}
    del values["image"]
    name = values.pop("id", None) or label
    answer = values.pop("answer", None)
    if answer is not None and values.setdefault("reference", answer) != answer:
        raise WorkloadError("the columns 'reference' and 'answer' differ; keep one of them")
    return Item(name, image, **{**defaults, **values})


def _as_text(value: Any) -> str:
    """A value as an item holds it; several texts, as reference answers may be, as a JSON list."""
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return value[0] if len(value) == 1 else json.dumps(value, ensure_ascii=False)
    return str(value)


def _csv_rows(data: bytes, path: Path) -> list[tuple[int, Any]]:
    rows: list[tuple[int, Any]] = []
    try:
        text = _text(data, path)
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=_delimiter(text))
        reader.fieldnames = _header(reader.fieldnames or [], path)
        for row in reader:
            surplus = any(row.pop(None, ()))  # type: ignore[call-overload]  # trailing commas
            values = {k: v for k, v in row.items() if v}
            rows.append((reader.line_num, _SURPLUS if surplus else values))
    except (csv.Error, UnicodeDecodeError) as e:
        raise WorkloadError(f"{path} is not a readable CSV in UTF-8: {e}") from e
    if not rows:
        why = f"{path.name} has a header and no rows"
        raise WorkloadError(f"workload {path.stem!r} has no usable item: {why}")
    return rows


def _text(data: bytes, path: Path) -> str:
    """UTF-8, the UTF-16 of Excel's "Unicode text", or GB18030, which Excel writes in China."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as not_utf8:
        try:
            text = data.decode("gb18030")
        except UnicodeDecodeError:
            raise not_utf8 from None
    log.warning("%s is not UTF-8; it is read as GB18030. If characters are wrong, save it as "
                "'CSV UTF-8'", path)  # fmt: skip
    return text


def _delimiter(text: str) -> str:
    """The delimiter with which the header has a column "image", a comma if none has."""
    line = text.partition("\n")[0]
    for delimiter in (",", ";", "\t"):
        header = next(csv.reader([line], delimiter=delimiter), [])
        if "image" in (name.strip().lower() for name in header):
            return delimiter
    return ","


def _header(names: Iterable[str], path: Path) -> list[str]:
    """Column names, the known ones without regard to case and spaces."""
    plain = [name.strip().lower() for name in names]
    for known in COLUMNS:
        if plain.count(known) > 1:
            raise WorkloadError(f"{path} has the column {known!r} more than once")
    return [p if p in COLUMNS else n for p, n in zip(plain, names, strict=True)]


def _json_rows(data: bytes) -> list[tuple[int, Any]]:
    whole = _parsed(data)
    if isinstance(whole, list):
        return list(enumerate(whole, 1))
    if isinstance(whole, dict):
        return [(1, whole)]
    return [(n, _parsed(line)) for n, line in enumerate(data.splitlines(), 1) if line.strip()]


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as e:
        return f"not valid JSON: {e}"
