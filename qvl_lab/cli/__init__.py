"""The command ``qvl-lab``: one command per public function.

Exit codes: 0 done; 1 done, but some inputs failed (they are listed); 2 a setting or an input
cannot be used; 3 the model, the device or the run file failed; 4 the report stopped and is partial;
130 interrupted, 143 terminated; what a run file holds is kept.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer

from qvl_lab.cli import bench, doctor, report, run  # noqa: F401  they add their commands
from qvl_lab.cli.app import app
from qvl_lab.cli.output import BAD_INPUT, CANNOT_RUN, INTERRUPTED, PARTIAL_REPORT, TERMINATED
from qvl_lab.errors import ConfigError, InputError, QvlError, ReportError

#: Commands that keep finished work in a run file.
_RESUMABLE = ("sweep", "ablate", "hit-rates", "report")
_CANNOT_WRITE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
_FULL = (errno.ENOSPC, errno.EDQUOT)


def main() -> NoReturn:
    """Run the command and turn errors into a message and an exit code."""
    for stream in (sys.stdout, sys.stderr):  # names of files may hold what UTF-8 cannot
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with _sigterm_as_ctrl_c() as terminated:
        try:
            code = app(standalone_mode=False)
        except (KeyboardInterrupt, typer.Abort):
            code = INTERRUPTED  # newer versions of typer return it themselves
        except ReportError as e:
            _fail(str(e), PARTIAL_REPORT)
        except (ConfigError, InputError) as e:
            _fail(str(e), BAD_INPUT)
        except QvlError as e:
            _fail(str(e), CANNOT_RUN)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        except Exception as e:
            _unexpected(e)
    if code == INTERRUPTED:
        word, code = ("terminated", TERMINATED) if terminated else ("interrupted", INTERRUPTED)
        kept = bool(set(sys.argv[1:2]) & set(_RESUMABLE))
        _fail(f"{word}; finished work is kept, the same command goes on" if kept else word, code)
    sys.exit(code if isinstance(code, int) else 0)


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[list[int]]:
    """Let SIGTERM end the work as Ctrl-C does, with its processes; yields what was received."""
    received: list[int] = []

    def stop(number: int, _: Any) -> None:
        received.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)


def _unexpected(error: Exception) -> NoReturn:
    """A usage error of the command line, a file that cannot be written, or a fault of ours."""
    if hasattr(error, "exit_code") and hasattr(error, "show"):
        error.show()
        sys.exit(error.exit_code)
    if isinstance(error, OSError) and error.errno in (*_CANNOT_WRITE, *_FULL):
        where = f"cannot write {error.filename}: " if error.filename else "cannot write: "
        code = CANNOT_RUN if error.errno in _FULL else BAD_INPUT
        _fail(where + (error.strerror or str(error)), code)
    traceback.print_exception(error)
    _fail("this is a fault of qvl-lab; please report it with the lines above", CANNOT_RUN)


def _fail(message: str, code: int) -> NoReturn:
    print(f"qvl-lab: {message}", file=sys.stderr)
    sys.exit(code)
