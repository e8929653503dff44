"""``qvl-lab doctor``: what this machine can do."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qvl_lab.cli.app import app
from qvl_lab.cli.options import AsJson, Device, check_writable
from qvl_lab.cli.output import CANNOT_RUN

if TYPE_CHECKING:
    from qvl_lab.show.doctor import Check


@app.command(epilog="Examples: qvl-lab doctor --json; qvl-lab doctor --ceilings ceilings.json")
def doctor(
    as_json: AsJson = False,
    ceilings: Annotated[
        Path | None,
        typer.Option(
            help="Also measure what the device does at most, and write it to this file, which "
            "'qvl-lab report --ceilings' reads."
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Say what this machine can do, and what is missing with how to get it."""
    if ceilings:
        check_writable(ceilings, folder=False)
    from qvl_lab.show.doctor import checks

    found = checks()
    if ceilings:
        found.append(_measured(ceilings, device))
    if as_json:
        print(json.dumps([asdict(check) for check in found], ensure_ascii=False))
    else:
        for check in found:
            print(f"{'ok  ' if check.ok else 'miss'}  {check.name:<14}{check.detail}")
    if any(check.needed and not check.ok for check in found):
        raise typer.Exit(CANNOT_RUN)


def _measured(path: Path, device: str) -> Check:
    """Measure the ceilings of a device and write them."""
    from qvl_lab.config import ModelSpec
    from qvl_lab.models.load import resolve
    from qvl_lab.probe.ceilings import measure_ceilings, save_ceilings
    from qvl_lab.show.doctor import Check

    found = measure_ceilings(resolve(ModelSpec(device=device)).device)
    save_ceilings(found, path)
    rates = ", ".join(
        f"{name} {rate / 1e12:.3g} TFLOP/s" for name, rate in found["flops_per_s"].items()
    )
    bandwidth = f"{found['bytes_per_s'] / 1e9:.3g} GB/s"
    launch = f"{1e6 * found['launch_s']:.2g} us a launch"
    return Check("ceilings", True, f"{found['device']}: {rates}, {bandwidth}, {launch}; {path}")
