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
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from types import ModuleType

from qvl_lab.bench.trial import Trial
from qvl_lab.runs.records import Run

#: How long a worker that has sent its result may take to end.
_LEAVE_S = 5.0
#: How the reason of a Run begins whose worker died without a result.
DIED = "the worker process died"
_main_lock = threading.Lock()


def measure_per_process(trials: Iterable[Trial], timeout_s: float) -> Generator[Run, None, None]:
    """Measure each in a new process; one that dies or takes too long becomes an "error" run."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["qvl_lab.bench.executors.preload"])
    for trial in trials:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(sender, trial), daemon=True)
        with _without_main_module():
            process.start()
        sender.close()
        try:
            yield _receive(receiver, process, trial, timeout_s)
        finally:
            process.kill()
            process.join()
            receiver.close()


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


def _child(sender: Connection, trial: Trial) -> None:
    # Ctrl-C reaches the whole process group; the sweep decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_sweep, daemon=True).start()
    from qvl_lab.bench.measure import measure

    sender.send_bytes(measure(trial).to_json().encode())


def _end_with_the_sweep() -> None:
    """If the sweep is killed, its work must not go on behind the back of the next one.

    The kernel's parent-death signal would not do: the parent is the fork server, which lives as
    long as its workers.
    """
    if sweep := multiprocessing.parent_process():
        sweep.join()
        os._exit(1)


def _receive(
    receiver: Connection,
    process: multiprocessing.process.BaseProcess,
    trial: Trial,
    timeout_s: float,
) -> Run:
    if not receiver.poll(timeout_s):
        return trial.result("error", f"given up after {timeout_s:g} s; raise timeout_s")
    try:
        run = Run.from_json(receiver.recv_bytes())
        process.join(_LEAVE_S)  # one killed on its way out leaves semaphores behind
        return run
    except EOFError:
        process.join()
        code = process.exitcode or 0
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        hint = " (the system may have run out of memory)" if code == -signal.SIGKILL else ""
        return trial.result("error", f"{DIED} with {how}{hint}")
