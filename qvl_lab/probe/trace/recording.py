"""Recording with torch.profiler, with the stages of the work as ranges in the trace."""

from __future__ import annotations

import os
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from qvl_lab.errors import ConfigError
from qvl_lab.probe.stages import listening
from qvl_lab.probe.trace.events import STAGE
from qvl_lab.probe.trace.reading import MAX_BYTES, MAX_EVENTS, Trace, check_limits, read


class Ranges:
    """A listener of stage marks that turns every stage into a range of torch.profiler.

    A range is named "stage: " and the stage's path ("stage: decode/lm_head"), by which the tables
    tell it from the ranges of others. What goes through a stage is not written: Kineto shows no
    arguments of ranges.

    Parameters
    ----------
    nvtx : bool
        Also mark the stages for NVIDIA's Nsight tools; needs CUDA.

    Raises
    ------
    ConfigError
        NVTX is asked for where there is no CUDA.
    """

    def __init__(self, *, nvtx: bool = False) -> None:
        import torch

        if nvtx and not torch.cuda.is_available():
            raise ConfigError(
                "nvtx=True needs a CUDA device, and torch sees none; "
                "leave nvtx out to have the stages in the trace alone"
            )
        self._nvtx = nvtx
        # a range belongs to its thread; stages of two threads do not contain each other
        self._threads: dict[int, list[tuple[str, str, Any, int | None]]] = {}

    def begin(self, name: str, gpu: bool, **amounts: int) -> None:
        from torch.profiler import record_function

        opened = self._threads.setdefault(threading.get_ident(), [])
        path = f"{opened[-1][1]}/{name}" if opened else name
        mark = self._nvtx_start(path) if self._nvtx else None
        profiled = record_function(STAGE + path)
        profiled.__enter__()  # type: ignore[no-untyped-call]
        opened.append((name, path, profiled, mark))

    def end(self, name: str, gpu: bool, **amounts: int) -> None:
        opened = self._threads.get(threading.get_ident(), [])
        if name in (begun for begun, *_ in opened):
            while self._close(opened) != name:
                continue

    def close(self) -> None:
        """End what this thread left open, as it does when an exception skipped the end marks."""
        opened = self._threads.pop(threading.get_ident(), [])
        while opened:
            self._close(opened)

    def _close(self, opened: list[tuple[str, str, Any, int | None]]) -> str:
        name, _, profiled, mark = opened.pop()
        profiled.__exit__(None, None, None)
        if mark is not None:
            self._nvtx_end(mark)
        return name

    @staticmethod
    def _nvtx_start(message: str) -> int:
        from torch.cuda import nvtx

        return int(nvtx.range_start(message))  # type: ignore[no-untyped-call]

    @staticmethod
    def _nvtx_end(mark: int) -> None:
        from torch.cuda import nvtx

        nvtx.range_end(mark)  # type: ignore[no-untyped-call]


class Recording:
    """``with Recording(device="cuda") as recording: ...`` and then ``recording.trace``.

    Records the operators of this thread, the stages that are marked meanwhile and, on a CUDA
    device, every kernel, copy and launch of the process. When the block raises, the profiler is
    stopped all the same and ``trace`` holds what was recorded until then.

    Parameters
    ----------
    device : str
        Where the work runs: "cpu", "cuda" or "cuda:1".
    shapes : bool
        Note the shapes of every operator's inputs.
    memory : bool
        Note every allocation; makes the trace larger.
    modules : bool
        Note Python functions and ``nn.Module`` calls, for TensorBoard's module view; slow.
    all_threads : bool
        Also record operators and stages of other threads.
    nvtx : bool
        Also mark the stages for NVIDIA's Nsight tools.
    max_events, max_bytes : int
        Limits on the trace, as in :func:`~qvl_lab.probe.trace.read`.

    Raises
    ------
    ConfigError
        A limit below 1. On entering: another profiler is running, or CUDA is asked for where
        there is none.
    """

    def __init__(
        self,
        *,
        device: str = "cpu",
        shapes: bool = False,
        memory: bool = False,
        modules: bool = False,
        all_threads: bool = False,
        nvtx: bool = False,
        max_events: int = MAX_EVENTS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        check_limits(max_events, max_bytes)  # not only when the work has been done
        self._device, self._all_threads, self._nvtx = device, all_threads, nvtx
        self._notes = {
            "record_shapes": shapes,
            "profile_memory": memory,
            "with_stack": modules,
            "with_modules": modules,
        }
        self._limits = {"max_events": max_events, "max_bytes": max_bytes}
        self._trace: Trace | None = None

    @property
    def trace(self) -> Trace:
        """What was recorded.

        Raises
        ------
        ConfigError
            The block has not ended.
        """
        if self._trace is None:
            raise ConfigError(
                "this recording has no trace yet; read it after its with block has ended"
            )
        return self._trace

    def __enter__(self) -> Self:
        import torch

        if torch.autograd._profiler_enabled():  # type: ignore[attr-defined]
            raise ConfigError(
                "another torch profiler is running, and torch records for one at a time; "
                "end it before this recording starts"
            )
        if self._device.startswith("cuda") and not torch.cuda.is_available():
            raise ConfigError(
                f"cannot record device {self._device!r}: torch sees no CUDA device; "
                'record device="cpu" or install a CUDA build of torch'
            )
        self._trace = None
        # torch 2.13 writes a line when it starts and when it stops, above any error's level
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")
        with ExitStack() as stack:
            ranges = Ranges(nvtx=self._nvtx)
            self._profiler = stack.enter_context(self._new_profiler())
            stack.callback(ranges.close)
            stack.enter_context(listening(ranges, all_threads=self._all_threads))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()
        with tempfile.TemporaryDirectory(prefix="qvl-lab-trace-") as folder:
            path = Path(folder) / "trace.json"
            self._profiler.export_chrome_trace(str(path))
            self._trace = read(path, **self._limits)
        del self._profiler, self._stack

    def _new_profiler(self) -> Any:
        from torch.profiler import ProfilerActivity, profile

        activities = [ProfilerActivity.CPU]
        if self._device.startswith("cuda"):
            activities.append(ProfilerActivity.CUDA)
        settings: dict[str, Any] = dict(self._notes)
        if self._all_threads:
            from torch._C._profiler import _ExperimentalConfig

            settings["experimental_config"] = _ExperimentalConfig(profile_all_threads=True)
        return profile(activities=activities, **settings)
