"""``%%qvl``: run a cell as ever, then say where its time, memory and money went.

The cell is not run by the magic: its first line becomes a line magic, which starts a meter that
IPython's event at the end of the cell stops. Values, tracebacks and ``await`` are IPython's own.
"""

from __future__ import annotations

import re
import shlex
from typing import Any

from IPython.core.error import UsageError
from IPython.core.inputtransformer2 import TransformerManager
from IPython.core.magic_arguments import MagicArgumentParser
from IPython.display import display

from qvl_lab.analysis.money.prices import Price, alternatives, convert, find_price, price_range
from qvl_lab.errors import ConfigError, QvlError
from qvl_lab.show.notebook.meter import Meter

_OPTIONS = MagicArgumentParser(
    "%qvl",  # the help puts another % before it
    description="Run the cell, then show its stages, wall time, tokens, peak memory and cost. "
    "Only work in this process is seen: sweeps measure in processes of their own unless "
    'isolation="none". On a GPU torch\'s peak statistics start anew.',
)
_OPTIONS.add_argument("--gpu", help="GPU whose price counts, such as A10G")
_OPTIONS.add_argument("--provider", help="whose price; qvl-lab prices lists them")
_OPTIONS.add_argument("--per-hour", type=float, help="a price of your own for an hour")
_OPTIONS.add_argument("--currency", help="such as CNY; by default the price's own")
_OPTIONS.add_argument("-h", "--help", action="store_true", help="show this and do not run the cell")
_OPTIONS.add_argument("--name", help="variable for the result: .frame, .wall_s, .cost and more")


def register(shell: Any) -> None:
    """Bring ``%%qvl`` to an IPython shell."""

    def qvl(line: str, cell: str | None = None) -> None:
        if _asks_for_help(line):
            print(_OPTIONS.format_help())
        elif cell is not None:  # called by name, as in a notebook that was made a script
            shell.run_cell(f"%%qvl {line}\n{cell}").raise_error()
        else:
            _Cell(shell, line).start()

    qvl.__doc__ = _OPTIONS.format_help()
    shell.register_magic_function(qvl, "line_cell", "qvl")
    shell.input_transformers_cleanup.append(_as_line_magic)


def _asks_for_help(line: str) -> bool:
    return bool({"-h", "--help"} & set(line.split()))


def _as_line_magic(lines: list[str]) -> list[str]:
    """ "%%qvl" above a cell as "%qvl" in it; what is below may be magic too."""
    if not lines or not re.match(r"%%qvl\b", lines[0]):
        return lines
    if _asks_for_help(lines[0]):
        return [lines[0][1:]]
    below = TransformerManager().transform_cell("".join(lines[1:]))
    return [lines[0][1:], *below.splitlines(keepends=True)]


#: While a cell is being typed it must be taken for a cell magic, which an empty line ends.
_as_line_magic.has_side_effects = True  # type: ignore[attr-defined]


class _Cell:
    """Measures to the end of the cell that starts it, not of cells that run within it, as by %run.

    Bad options are refused here, before the cell goes on.
    """

    def __init__(self, shell: Any, line: str) -> None:
        self._events, self._variables = shell.events, shell.user_ns
        try:
            self._options = _OPTIONS.parse_args(shlex.split(line))
            self._price, self._notes = _price(self._options)
        except (QvlError, ValueError) as e:  # the latter for quotes without an end
            raise UsageError(str(e)) from e
        self._meter, self._inner = Meter(), 0

    def start(self) -> None:
        self._meter.start()
        self._events.register("pre_execute", self._enter)
        self._events.register("post_execute", self._leave)

    def _enter(self) -> None:
        self._inner += 1

    def _leave(self) -> None:
        self._inner -= 1
        if self._inner >= 0:
            return
        self._events.unregister("pre_execute", self._enter)
        self._events.unregister("post_execute", self._leave)
        self._meter.stop()
        summary = self._meter.summary(self._price, self._notes)
        if self._options.name:
            self._variables[self._options.name] = summary
        display(summary)


def _price(options: Any) -> tuple[Price | None, tuple[str, ...]]:
    """The price that the options name, in the currency asked for, and how it came about."""
    if options.per_hour is not None:
        own = Price(
            gpu=options.gpu or "GPU",
            provider=options.provider or "own price",
            per_hour=options.per_hour,
            currency=options.currency or "CNY",
        )
        return own, (own.label,)
    if options.gpu is None:
        if options.provider or options.currency:
            raise ConfigError("a price needs a GPU: name it, as in --gpu A10G, or give --per-hour")
        return None, ()
    quoted = find_price(options.gpu, options.provider)
    price, rate = convert(quoted, options.currency or quoted.currency)
    at = f", 1 {rate.base} = {rate.rate:g} {rate.quote} ({rate.date})" if rate else ""
    known = alternatives(quoted)
    notes: tuple[str, ...] = (quoted.label + at,)
    if options.provider is None and len(known) > 1:
        notes = (f"{len(known)} prices of {quoted.gpu} known, {price_range(known)}", *notes)
    return price, notes
