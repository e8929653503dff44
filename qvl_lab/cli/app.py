"""The typer application that the commands are added to."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(
    name="qvl-lab",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Where the time, memory and money of a Qwen3-VL workload go, and what to run instead.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from qvl_lab import __version__

        print(f"qvl-lab {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
