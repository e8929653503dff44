"""Exit codes, and what commands print beside their result: notes and failures."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence

SOME_FAILED, BAD_INPUT, CANNOT_RUN, PARTIAL_REPORT = 1, 2, 3, 4
INTERRUPTED, TERMINATED = 130, 143
#: Failures of one kind that are listed line by line; more are counted.
_LISTED = 10


def note(message: str) -> None:
    """Print a line to standard error."""
    print(message, file=sys.stderr)


def few(names: Sequence[str], most: int = 5) -> str:
    """The first names, and "..." if there are more."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def counts_in_words(counts: Mapping[str, int]) -> str:
    """ "2 ok, 1 oom" """
    return ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))


def one_line(text: str) -> str:
    """Text without line breaks, tabs and terminal escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def note_failures(failures: Iterable[tuple[str, str]]) -> None:
    """Name failed items with their errors; many of one kind are counted, with three examples."""
    by_kind: dict[str, list[tuple[str, str]]] = {}
    for name, error in failures:
        kind = re.sub(r": '[^']*'$", "", error)  # the path that could not be read
        by_kind.setdefault(kind, []).append((name, error))
    for kind, alike in by_kind.items():
        if len(alike) <= _LISTED:
            for name, error in alike:
                note(f"failed: {one_line(name)}: {one_line(error)}")
        else:
            examples = [error.removeprefix(f"{kind}: ") for _, error in alike[:3]]
            if examples[0] == kind:
                examples = [name for name, _ in alike[:3]]
            shown = ", ".join(map(one_line, examples))
            note(f"failed: {len(alike):,} items: {one_line(kind)}, e.g. {shown}")
