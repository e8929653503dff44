"""Where configurations run: in this process, or in a process each.

A process of its own keeps a crash, a leak or a spoilt CUDA context from reaching the next
configuration. The processes are forked from a server that has torch and transformers imported
but no CUDA context, so a fresh one costs no import.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from qvl_lab.runs.records import Run

if TYPE_CHECKING:
    from qvl_lab.bench.measure import Trial


def in_process(jobs: Iterable[Trial]) -> Iterator[Run]:
    """Measure one after another here; a model is loaded once for all of its settings."""
    from qvl_lab.bench.measure import measure, remember

    get_lab = remember()
    for job in jobs:
        yield measure(job, get_lab)


#: How long a worker that has sent its result may take to end.
_LEAVE_S = 5.0


def in_own_process(jobs: Iterable[Trial], timeout_s: float) -> Iterator[Run]:
    """Measure each in a new process; one that dies or takes too long becomes an "error" run."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["qvl_lab.bench.executors.preload"])
    for job in jobs:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(sender, job), daemon=True)
        process.start()
        sender.close()
        try:
            yield _receive(receiver, process, job, timeout_s)
        finally:
            process.kill()
            process.join()
            receiver.close()


def _child(sender: Connection, job: Trial) -> None:
    # Ctrl-C reaches the whole process group; the sweep decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_sweep, daemon=True).start()
    from qvl_lab.bench.measure import measure

    sender.send_bytes(measure(job).to_json().encode())


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
    job: Trial,
    timeout_s: float,
) -> Run:
    if not receiver.poll(timeout_s):
        return job.result("error", f"given up after {timeout_s:g} s; raise timeout_s")
    try:
        run = Run.from_json(receiver.recv_bytes())
        process.join(_LEAVE_S)  # one killed on its way out leaves semaphores behind
        return run
    except EOFError:
        process.join()
        code = process.exitcode or 0
        how = f"exit code {code}"
        if code < 0:
            how = f"signal {signal.Signals(-code).name}"
        hint = {
            -signal.SIGKILL: " (the system may have run out of memory)",
            1: " (in a script, call sweep under: if __name__ == '__main__')",
        }.get(code, "")
        return job.result("error", f"the worker process died with {how}{hint}")


EXECUTORS: dict[str, Callable[[Iterable[Trial], float], Iterator[Run]]] = {
    "none": lambda jobs, timeout_s: in_process(jobs),
    "process": in_own_process,
}
