"""``with ql.watch(lab): ...``: what goes on in a long run, while it goes on and after it.

A thread asks a meter every so often and shows what it says: as widgets in a notebook, which give
way to a table that stays in the file; as a line on stderr elsewhere.
"""

from __future__ import annotations

import logging
import shutil
import sys
import threading
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from IPython import get_ipython
from IPython.display import Pretty, display

from qvl_lab.probe.stages import outermost
from qvl_lab.show.notebook.meter import Meter, Summary, is_metered

if TYPE_CHECKING:
    from qvl_lab.session import Lab

#: Pause between samples and updates, and between lines that cannot overwrite each other.
_UPDATE_S = 0.5
_LINE_S = 10.0

log = logging.getLogger(__name__)


class watch:  # noqa: N801 - reads as a statement: with watch(lab): ...
    """Show what goes on while a block runs, and leave its stage table.

    It sees only work in this process. A sweep measures each setting in a process of its own by
    default, of which nothing is seen: pass ``isolation="none"`` to ``ql.sweep`` to watch its
    stages, or do without the watch and follow the sweep's own progress bar, which names the
    setting that is measured.

    Within a ``%%qvl`` cell or another watch, whose table has its stages too, it leaves its last
    line instead of a table of its own; ``summary`` has both. On a GPU torch's peak statistics
    start anew. An error of the display is logged and ends the display, never the run.

    Parameters
    ----------
    lab : Lab, optional
        Whose GPU's utilisation to show; by default torch's current GPU, if one is in use.

    Attributes
    ----------
    summary : Summary or None
        What remains, once the block has ended.

    Examples
    --------
    >>> with ql.watch(lab):  # doctest: +SKIP
    ...     lab.generate_batch(images, "What is this?")
    """

    def __init__(self, lab: Lab | None = None) -> None:
        self.summary: Summary | None = None
        self._meter = Meter(lab.loaded.device.index if lab else None, _UPDATE_S)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="qvl-lab watch", daemon=True)

    def __enter__(self) -> Self:
        self._within_another = is_metered()
        in_notebook = getattr(get_ipython(), "kernel", None) is not None
        self._view = _Widgets() if in_notebook else _Lines()
        self._meter.start()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._meter.stop()
        self._thread.join()
        self.summary = self._meter.summary()
        self._tell(
            partial(self._view.finish, table=False) if self._within_another else self._view.finish
        )

    def _loop(self) -> None:
        while self._tell(self._view.show) and not self._stop.wait(self._view.pause_s):
            continue

    def _tell(self, view: Callable[[Summary], None]) -> bool:
        try:
            view(self._meter.summary())
        except Exception:
            log.warning("ql.watch cannot show:\n%s", self.summary or "the run", exc_info=True)
            return False
        return True


class _Widgets:
    """In a notebook, a bar for each outer stage and a line below."""

    pause_s = _UPDATE_S

    def __init__(self) -> None:
        import ipywidgets  # type: ignore[import-untyped]

        self._make, self._bars = ipywidgets, dict[str, Any]()
        self._line = ipywidgets.Label()
        self._box = ipywidgets.VBox([self._line])
        self._handle = display(self._box, display_id=True)

    def show(self, summary: Summary) -> None:
        shares = dict(zip(summary.frame["path"], summary.frame["share"], strict=True))
        outer = [path for path in shares if outermost(path)]
        for path in outer:
            if path not in self._bars:
                style = {"description_width": "12em"}
                self._bars[path] = self._make.FloatProgress(max=1.0, style=style)
            self._bars[path].value = shares[path]
            self._bars[path].description = f"{path} {shares[path]:.0%}"
        self._line.value = summary.line
        self._box.children = (*(self._bars[path] for path in outer), self._line)

    def finish(self, summary: Summary, *, table: bool = True) -> None:
        """Put the table, or its line alone, in the place of the widgets, and close them all."""
        self._handle.update(summary if table else Pretty(summary.line))
        for widget in (*self._bars.values(), self._line, self._box):
            for part in (widget, *widget.trait_values().values()):
                if isinstance(part, self._make.Widget):
                    part.close()


class _Lines:
    """On stderr, a line that is overwritten on a terminal; at the end the table."""

    def __init__(self) -> None:
        self._clear = "\r\033[K" if sys.stderr.isatty() else ""
        self.pause_s = _UPDATE_S if self._clear else _LINE_S

    def show(self, summary: Summary) -> None:
        line = summary.line
        if self._clear:
            line = line[: shutil.get_terminal_size().columns - 1]
        end = "" if self._clear else "\n"
        print(f"{self._clear}{line}", end=end, file=sys.stderr, flush=True)

    def finish(self, summary: Summary, *, table: bool = True) -> None:
        print(f"{self._clear}{summary if table else summary.line}", file=sys.stderr)
