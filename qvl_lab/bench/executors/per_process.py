"""Trials in a process each.

A process of its own keeps a crash, a leak or a spoilt CUDA context from reaching the next
configuration. The processes are forked from a server that has torch and transformers imported
but no CUDA context, so a fresh one costs no import.

A worker does not import the program's main module, which it has no use for. So a script that calls
:func:`qvl_lab.sweep` at its top level does not start over in each worker.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from multiprocessing.connection import Connection
from types import ModuleType

from qvl_lab.bench.trial import Trial
from qvl_lab.runs.records import Run

#: How long a worker that has sent its result may take to end.
_LEAVE_S = 5.0
#: What a worker says when it waits for its turn, and what it is told then.
READY = b"ready"
#: How the reason of a Run begins whose worker died without a result.
DIED = "the worker process died"
_main_lock = threading.Lock()


def measure_per_process(trials: Iterable[Trial], timeout_s: float) -> Generator[Run, None, None]:
    """Measure each in a new process; one that dies or takes too long becomes an "error" run."""
    for trial in trials:
        with closing(Worker(trial, timeout_s)) as worker:
            yield worker.finish(timeout_s)


class Worker:
    """A process that measures one trial, until :meth:`close` ends it.

    Parameters
    ----------
    timeout_s : float
        Named where the trial is given up for taking too long.
    in_turns : bool
        Every timed call waits for :meth:`go`.
    """

    def __init__(self, trial: Trial, timeout_s: float, *, in_turns: bool = False) -> None:
        self._trial, self._timeout_s = trial, timeout_s
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["qvl_lab.bench.executors.preload"])
        self._pipe, theirs = context.Pipe()
        args = (theirs, trial, True) if in_turns else (theirs, trial)
        self._process = context.Process(target=_child, args=args, daemon=True)
        with _without_main_module():
            self._process.start()
        theirs.close()
        self._run: Run | None = None

    def close(self) -> None:
        """End the process, whatever it is at."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def wait(self, seconds: float) -> None:
        """Wait until it has warmed up, or done its last call; or until it has ended early."""
        if self._run is None:
            self._run = self._receive(seconds)

    def go(self, seconds: float) -> None:
        """Let it make one call, and wait until that is done."""
        if self._run is None:
            with suppress(OSError):  # it died, which wait finds
                self._pipe.send_bytes(READY)
            self.wait(seconds)

    def finish(self, seconds: float) -> Run:
        """Its Run; an "error" if it died or takes longer than so many seconds."""
        while self._run is None:
            self.wait(seconds)
        return self._run

    def _receive(self, seconds: float) -> Run | None:
        """Its Run once it has one; None if it waits for its turn."""
        if not self._pipe.poll(max(0.0, seconds)):
            return self._trial.result(
                "error", f"given up after {self._timeout_s:g} s; raise timeout_s"
            )
        try:
            said = self._pipe.recv_bytes()
        except (EOFError, ConnectionError):
            return self._died()
        if said == READY:
            return None
        self._process.join(_LEAVE_S)  # one killed on its way out leaves semaphores behind
        return Run.from_json(said)

    def _died(self) -> Run:
        self._process.join()
        code = self._process.exitcode or 0
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        hint = " (the system may have run out of memory)" if code == -signal.SIGKILL else ""
        return self._trial.result("error", f"{DIED} with {how}{hint}")


@contextmanager
def _without_main_module() -> Iterator[None]:
    """Hide the main module from multiprocessing, which would have the new process import it."""
    with _main_lock:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


def _child(pipe: Connection, trial: Trial, in_turns: bool = False) -> None:
    # Ctrl-C reaches the whole process group; the sweep decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_sweep, daemon=True).start()
    from qvl_lab.bench.measure import measure

    run = measure(trial, in_turns=_turns(pipe) if in_turns else None)
    pipe.send_bytes(run.to_json().encode())


def _turns(pipe: Connection) -> Callable[[], None]:
    """Says that the last call is done, or the first can begin, and waits for the next."""

    def turn() -> None:
        pipe.send_bytes(READY)
        pipe.recv_bytes()

    return turn


def _end_with_the_sweep() -> None:
    """If the sweep is killed, its work must not go on behind the back of the next one.

    The kernel's parent-death signal would not do: the parent is the fork server, which lives as
    long as its workers.
    """
    if sweep := multiprocessing.parent_process():
        sweep.join()
        os._exit(1)
