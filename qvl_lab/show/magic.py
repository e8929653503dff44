"""``%%qvl``: run a cell as ever, then say where its time, memory and money went.

The cell runs in the user's namespace and is shown as without the magic. Meanwhile a recorder
hears the stage marks and a thread samples memory; both are taken off whatever happens.
"""

from __future__ import annotations

import ast
import contextlib
import html
import keyword
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import pandas as pd
from IPython.core.displayhook import DisplayHook
from IPython.core.error import UsageError
from IPython.core.magic import Magics, cell_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring
from IPython.display import display

from qvl_lab.analysis.cost import KINDS, Price, convert, find_price
from qvl_lab.errors import ConfigError, QvlError, UnknownNameError
from qvl_lab.hardware import find_gpu, gpu_name
from qvl_lab.probe.power import Sampler
from qvl_lab.probe.stages import Recorder, Total, listening, stage_table, totals
from qvl_lab.show.text import money, number

#: Spans that are held before they are summed: a sweep in one cell makes hundreds a second.
_MOST_SPANS = 1024
#: The stage whose tokens are answers.
OUT = "detokenize"
#: A stage table's column to its heading and how a value is written; unknown values are "".
_COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "calls": ("calls", lambda value: f"{value:,.0f}"),
    "seconds": ("seconds", lambda value: f"{value:,.3f}"),
    "share": ("share", lambda value: f"{100 * value:.1f}%"),
    "cpu_s": ("CPU s", lambda value: f"{value:,.3f}"),
    "tokens": ("tokens", lambda value: f"{value:,.0f}"),
    "bytes": ("MB", lambda value: f"{value / 1e6:,.1f}"),
}


# ---- what is shown ----


@dataclass(frozen=True, kw_only=True, repr=False)
class Summary:
    """A stage table with lines below it; shows itself as text or HTML.

    Attributes
    ----------
    frame : DataFrame
        See :func:`qvl_lab.probe.stages.stage_table`.
    wall_s : float
    notes : tuple of str
        What else there is to know.
    """

    frame: pd.DataFrame
    wall_s: float
    notes: tuple[str, ...] = ()

    @property
    def parts(self) -> list[str]:
        """What the line below the table says."""
        return [f"{number(self.wall_s)} s"]

    def __repr__(self) -> str:
        return "\n".join([*_text_table(self.frame), " · ".join(self.parts), *self.notes])

    def _repr_html_(self) -> str:
        lines = [f"<b>{html.escape(' · '.join(self.parts))}</b>", *map(html.escape, self.notes)]
        below = "".join(f"<div>{line}</div>" for line in lines)
        return f"<div>{_html_table(self.frame)}{below}</div>"


@dataclass(frozen=True, kw_only=True, repr=False)
class Measured(Summary):
    """What a ``%%qvl`` cell took.

    Attributes
    ----------
    new_tokens : int or None
        Tokens that were detokenised; a row that ended before the others of its batch counts as
        long as they. None if no stage says.
    memory_kind : str
        "allocated VRAM" by torch where CUDA was used, else "process memory".
    peak_memory_bytes : float or None
        The highest of that: exact for VRAM, of samples for the process.
    readings : dict
        Of the device; see :meth:`qvl_lab.probe.power.Sampler.summary`.
    price : Price or None
        What ``cost`` rests on, in its currency.
    stopped_by : str or None
        The exception that ended the cell, and in which stage.
    """

    new_tokens: int | None
    memory_kind: str
    peak_memory_bytes: float | None
    readings: Mapping[str, float | None]
    price: Price | None
    stopped_by: str | None

    @property
    def tokens_per_s(self) -> float | None:
        """New tokens over the wall time of the whole cell."""
        return self.new_tokens / self.wall_s if self.new_tokens and self.wall_s else None

    @property
    def cost(self) -> float | None:
        """The wall time's share of the hourly price, in ``price.currency``."""
        return self.price.per_hour * self.wall_s / 3600 if self.price else None

    @property
    def parts(self) -> list[str]:
        """What the line below the table says: only what is known."""
        parts = super().parts
        if self.stopped_by:
            parts.append(f"stopped by {self.stopped_by}")
        if self.tokens_per_s:
            parts.append(f"{self.new_tokens:,} new tokens, {number(self.tokens_per_s)} tokens/s")
        if self.peak_memory_bytes is not None:
            parts.append(f"peak {self.memory_kind} {gib(self.peak_memory_bytes)}")
        if (busy := self.readings.get("gpu_utilisation")) is not None:
            parts.append(f"GPU busy {100 * busy:.0f}%")
        if self.price and self.cost is not None:
            parts.append(money(self.cost, self.price.currency))
        return parts


def _text_table(frame: pd.DataFrame) -> Iterator[str]:
    """Columns in line, the stages' names to the left."""
    heads, rows = _written(frame)
    if not rows:
        return
    cells = [["stage", *heads], *([f"{'  ' * depth}{name}", *row] for depth, name, row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for name, *values in cells:
        numbers = (f"{v:>{width}}" for v, width in zip(values, widths[1:], strict=True))
        yield "  ".join([f"{name:<{widths[0]}}", *numbers]).rstrip()


def _html_table(frame: pd.DataFrame) -> str:
    """The same; a bar behind each share."""
    heads, rows = _written(frame)
    if not rows:
        return ""
    body = [_html_row("th", "stage", 0, heads)]
    for (depth, name, row), share in zip(rows, frame["share"].fillna(0), strict=True):
        bars = ["" if heading != "share" else _bar(share) for heading in heads]
        body.append(_html_row("td", html.escape(name), depth, row, bars))
    return f"<table><thead>{body[0]}</thead><tbody>{''.join(body[1:])}</tbody></table>"


def _html_row(
    tag: str, name: str, depth: int, values: list[str], styles: Sequence[str] = ()
) -> str:
    first = f'<{tag} style="text-align:left;padding-left:{0.5 + 1.5 * depth}em">{name}</{tag}>'
    cells = [
        f'<{tag} style="text-align:right;{style}">{value}</{tag}>'
        for value, style in zip(values, styles or [""] * len(values), strict=True)
    ]
    return f"<tr>{first}{''.join(cells)}</tr>"


def _bar(share: float) -> str:
    """A background that is blue up to a share; see-through, for dark themes too."""
    percent = f"{100 * min(max(share, 0), 1):.1f}%"
    colours = f"rgba(0,114,178,.25) {percent},transparent {percent}"
    return f"min-width:6em;background:linear-gradient(90deg,{colours})"


def _written(frame: pd.DataFrame) -> tuple[list[str], list[tuple[int, str, list[str]]]]:
    """Headings, and for each row its depth, its name and its values in words.

    A table without a stage, which has "other" alone, has no rows.
    """
    columns = [name for name in _COLUMNS if name in frame]
    heads = [_COLUMNS[name][0] for name in columns]
    if len(frame) < 2:
        return heads, []
    rows = []
    for _, row in frame.iterrows():
        *parents, name = row["path"].split("/")
        values = ["" if pd.isna(row[c]) else _COLUMNS[c][1](row[c]) for c in columns]
        rows.append((len(parents), name, values))
    return heads, rows


def stage_name(path: str) -> str:
    """The last part of a path: "layers" of "decode/layers"."""
    return path.rpartition("/")[2]


def gib(size_bytes: float) -> str:
    """ "1.25 GiB"."""
    return f"{number(size_bytes / 2**30)} GiB"


# ---- what is measured ----


def cuda_in_use() -> Any | None:
    """``torch.cuda`` if this process has begun to use it; torch is not imported to find out."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    started = getattr(cuda, "is_initialized", None)  # lacks while torch is being imported
    return cuda if started and started() else None


class CellRecorder(Recorder):
    """A recorder that begins before anybody knows whether the GPU will be used, and may last long.

    Events are recorded on the first GPU that is marked; times between two GPUs' events are not
    defined, so stages of another one have CPU times.

    Attributes
    ----------
    sums : dict
        Totals of the spans that were closed.
    peak_bytes : int or None
        The most that torch allocated on the stages' GPU. It is asked at every end of an outer
        stage, since others may start a new peak in between.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        super().__init__(clock=clock)
        self.sums: dict[str, Total] = {}
        self.peak_bytes: int | None = None
        self._device: int | None = None

    def begin(self, name: str, gpu: bool, **amounts: int) -> None:
        if len(self._closed) >= _MOST_SPANS and not self._open and self._idle():
            totals(self.spans(), into=self.sums)
        if gpu and (cuda := cuda_in_use()):
            device = cuda.current_device()
            self._device = device if self._device is None else self._device
            self._cuda = device == self._device
        super().begin(name, gpu, **amounts)

    def end(self, name: str, gpu: bool, **amounts: int) -> None:
        super().end(name, gpu, **amounts)
        if not self._open:
            self.read_peak()

    def read_peak(self) -> None:
        """Note what torch has allocated at most since the last time that a peak was started."""
        if cuda := cuda_in_use():
            self.peak_bytes = max(self.peak_bytes or 0, cuda.max_memory_allocated(self._device))

    def finish(self) -> str | None:
        """Sum everything up to now; the path of the stage that is still open, if one is."""
        where = self._open[-1].path if self._open else None
        for name in [opened.name for opened in reversed(self._open)]:
            super().end(name, False)
        totals(self.spans(), into=self.sums)
        return where


class Meter:
    """``with Meter() as meter: ...``, and then ``meter.measured(price)``.

    Parameters
    ----------
    clock : callable
        Seconds, increasing; replaced in tests.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.recorder, self._clock = CellRecorder(clock), clock
        self.wall_s = 0.0
        self.stopped_by: str | None = None
        self._notes: list[str] = []
        cuda = cuda_in_use()
        gpu = cuda.current_device() if cuda else 0 if gpu_name() else None
        self._process = Sampler(None)
        self._device = self._process if gpu is None else Sampler(gpu)

    def __enter__(self) -> Self:
        with self._noting_a_lost_gpu():
            if cuda := cuda_in_use():
                cuda.synchronize()  # what was queued before is not this cell's
                for index in range(cuda.device_count()):
                    cuda.reset_peak_memory_stats(index)
        with ExitStack() as stack:
            for sampler in dict.fromkeys((self._process, self._device)):
                stack.enter_context(sampler)
            stack.enter_context(listening(self.recorder))
            self._running = stack.pop_all()
        self._started_s = self._clock()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        where = None
        with self._running:
            with self._noting_a_lost_gpu():
                if cuda := cuda_in_use():
                    cuda.synchronize()
                self.recorder.read_peak()
            self.wall_s = self._clock() - self._started_s
            with self._noting_a_lost_gpu():
                where = self.recorder.finish()
        if kind:
            self.stopped_by = kind.__name__ + (f" in {where}" if where else "")
        elif where:
            self._notes.append(f"{where} was still open at the end of the cell")

    @contextlib.contextmanager
    def _noting_a_lost_gpu(self) -> Iterator[None]:
        """A spoilt CUDA context raises at every touch; that must not hide what spoilt it."""
        try:
            yield
        except RuntimeError as e:
            reason = str(e).partition("\n")[0]
            note = f"stage times are incomplete, the GPU does not answer: {reason}"
            self._notes += [note] if note not in self._notes else []

    def measured(self, price: Price | None, hints: Sequence[str] = ()) -> Measured:
        """What was measured while the block ran; ``hints`` are added to its notes."""
        sums = self.recorder.sums
        kind, peak = "process memory", self._process.summary()["process_memory_bytes"]
        if self.recorder.peak_bytes:
            kind, peak = "allocated VRAM", self.recorder.peak_bytes
        unheard = [] if sums else ["no stage was marked in this process"]
        return Measured(
            frame=stage_table(sums, self.wall_s),
            wall_s=self.wall_s,
            new_tokens=_new_tokens(sums),
            memory_kind=kind,
            peak_memory_bytes=peak,
            readings=self._device.summary(),
            price=price,
            stopped_by=self.stopped_by,
            notes=(*self._notes, *unheard, *hints),
        )


def _new_tokens(sums: Mapping[str, Total]) -> int | None:
    counts = [total.amounts["tokens"] for path, total in sums.items() if stage_name(path) == OUT]
    return sum(counts) if counts else None


# ---- the magic ----


_OPTIONS: list[Any] = [
    magic_arguments(),
    argument("--gpu", help="GPU whose price counts, such as A10G; by default this machine's"),
    argument("--provider", help="whose price, such as article or aws; qvl-lab prices lists them"),
    argument("--kind", help=f"{', '.join(KINDS)}; on_demand if there is a choice"),
    argument("--per-hour", type=float, help="a price of your own for an hour"),
    argument("--currency", help="three capital letters; CNY if not given"),
    argument("--name", help="variable for the result, which has .frame, .wall_s, .cost"),
    cell_magic,
]


def _with_options(method: Callable[..., None]) -> Any:
    """The decorators above on a method, the last one first."""
    decorated: Any = method
    for decorate in reversed(_OPTIONS):
        decorated = decorate(decorated)
    return decorated


@magics_class
class QvlMagics(Magics):  # type: ignore[misc]
    """Registered by ``%load_ext qvl_lab``."""

    @_with_options
    def qvl(self, line: str, cell: str) -> None:
        """Run the cell, then show its stages, wall time, tokens, peak memory and cost.

        The cell runs as without this line, except that it cannot ``await``. Only work in this
        process is seen: sweeps measure in processes of their own unless isolation="none". On a
        GPU torch's peak statistics start anew.

        Example: %%qvl --gpu A10G --provider article
        """
        args = _arguments(self.qvl, line)
        try:
            price, hints = _price(args)
        except QvlError as e:
            raise UsageError(str(e)) from e
        nodes, file = _parse(self.shell, cell)
        silent = DisplayHook.semicolon_at_end_of_expression(cell)
        shown = [] if silent else _shown(nodes, self.shell.ast_node_interactivity)
        meter = Meter()
        try:
            with meter:
                _execute(self.shell, nodes, shown, file)
        finally:
            measured = meter.measured(price, hints)
            if args.name:
                self.shell.user_ns[args.name] = measured
            display(measured)


def register(ipython: Any) -> None:
    """Bring ``%%qvl`` to an IPython shell."""
    ipython.register_magics(QvlMagics)


def _arguments(magic: Any, line: str) -> Any:
    """The options of a magic's first line, or a UsageError that says what is wrong."""
    args = parse_argstring(magic, line)
    for option, value in vars(args).items():
        if isinstance(value, str):
            setattr(args, option, value.strip("'\""))  # IPython leaves quotes on
    if args.name and (not args.name.isidentifier() or keyword.iskeyword(args.name)):
        raise UsageError(f"--name must be a variable's name, not {args.name!r}")
    return args


def _price(args: Any) -> tuple[Price | None, list[str]]:
    """The price that the options name, in the currency asked for, and how it came about.

    Without options this machine's GPU is priced, if the table knows it.
    """
    if args.per_hour is not None:
        price = Price(
            gpu=args.gpu or gpu_name() or "GPU",
            provider=args.provider or "own price",
            kind=args.kind or "on_demand",
            per_hour=args.per_hour,
            currency=args.currency or "CNY",
        )
        return price, [price.label]
    known = find_gpu(gpu_name())
    gpu = args.gpu or (known.name if known else None)
    if gpu is None:
        if args.provider or args.kind or args.currency:
            raise ConfigError("a price needs a GPU: name it, as in --gpu A10G, or give --per-hour")
        return None, ["no price: name a GPU, as in --gpu A10G, or --per-hour 5 --currency CNY"]
    try:
        quoted = find_price(gpu, args.provider, args.kind)
    except UnknownNameError:
        if args.gpu or args.provider or args.kind:
            raise
        return None, [f"no price of {gpu} is known: give one, as in --per-hour 5 --currency CNY"]
    price, rate = convert(quoted, args.currency or "CNY")
    at = f", 1 {rate.base} = {rate.rate:g} {rate.quote} ({rate.date})" if rate else ""
    return price, [quoted.label + at]


def _parse(shell: Any, cell: str) -> tuple[list[ast.stmt], str]:
    """The cell's statements, and the file name under which IPython finds their source.

    They are one line further down, so that tracebacks count lines as the notebook does.
    """
    source = "\n" + shell.transform_cell(cell)
    file = shell.compile.cache(source, shell.displayhook.prompt_count, raw_code=cell)
    tree = shell.transform_ast(shell.compile.ast_parse(source, filename=file))
    return list(tree.body), file


def _execute(shell: Any, nodes: list[ast.stmt], shown: list[ast.stmt], file: str) -> None:
    """Run statements as IPython does: one by one, and display the value of those in ``shown``."""
    try:
        with shell.display_trap:
            for node in nodes:
                mode = "single" if node in shown else "exec"
                tree = ast.Interactive([node]) if node in shown else ast.Module([node], [])
                exec(shell.compile(tree, file, mode), shell.user_global_ns, shell.user_ns)
    except BaseException as e:
        _hide_callers(e, shell)
        raise


def _shown(nodes: list[ast.stmt], interactivity: str) -> list[ast.stmt]:
    """The statements whose value IPython's setting ``ast_node_interactivity`` displays."""
    if interactivity in ("none", "all"):
        return nodes if interactivity == "all" else []
    expression = bool(nodes) and isinstance(nodes[-1], ast.Expr)
    return nodes[-1:] if expression or interactivity == "last" else []


def _hide_callers(error: BaseException, shell: Any) -> None:
    """Have IPython show the traceback from the cell's own line on, as without the magic."""

    def render() -> list[str]:
        entry = error.__traceback__
        while entry and entry.tb_frame.f_code is not _execute.__code__:
            entry = entry.tb_next
        inner = entry.tb_next if entry else error.__traceback__
        shown: list[str] = shell.InteractiveTB.structured_traceback(
            type(error), error, inner, tb_offset=0
        )
        return shown

    if not hasattr(error, "_render_traceback_"):  # IPython's way to let an error show itself
        with contextlib.suppress(AttributeError):  # one with slots shows the magic's frames too
            error._render_traceback_ = render  # type: ignore[attr-defined]
