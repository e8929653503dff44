"""An ablation: one setting measured with no lever, each lever alone, all but each, and all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qvl_lab.analysis.levers.ablation import OFF
from qvl_lab.bench.planning import chosen_spec
from qvl_lab.bench.sweep import measure_each
from qvl_lab.config import Config, SweepSpec, digest
from qvl_lab.config.settings import PARTS
from qvl_lab.config.signatures import names_settings
from qvl_lab.errors import ConfigError, UnknownNameError
from qvl_lab.runs.store import Runs


@names_settings(SweepSpec, *PARTS, without=("axes", "base"))
def ablate(
    spec: SweepSpec | None = None,
    *,
    out: str | Path = "ablation.jsonl",
    levers: Sequence[str] | None = None,
    on_other_environment: str = "refuse",
    retry_errors: bool = False,
    progress: bool = True,
    **settings: Any,
) -> Runs:
    """Measure what each lever of the fast engine is worth for one setting.

    The variants are those of :func:`variants`. A run file that holds some of them already, from a
    sweep or an ablation that was stopped, is completed; see :func:`qvl_lab.sweep` for ``out``,
    ``on_other_environment``, ``retry_errors`` and ``progress``.

    Parameters
    ----------
    spec : SweepSpec, optional
        The setting, its ``base``, and the way of measuring; it has no axes. Without it
        ``settings`` make one, single values only.
    levers : sequence of str, optional
        Fields to switch off, of ``OFF``. By default all that the
        setting has on. ``batches`` keeps slow variants short: at batch 1 they see fewer items.

    Returns
    -------
    Runs
        All variants, old and new; ``ablation`` reads their frame.

    Raises
    ------
    ConfigError, WorkloadError, ModelError, StoreError
        Before anything is measured.
    """
    spec = chosen_spec(spec, settings, engine="fast")
    if spec.axes:
        raise ConfigError(
            f"an ablation is of one setting, so {', '.join(spec.axes)} must be a single value; "
            "run one ablation for each"
        )
    return measure_each(
        variants(spec.base, levers),
        spec,
        out=out,
        on_other_environment=on_other_environment,
        retry_errors=retry_errors,
        progress=progress,
    )


def variants(base: Config, levers: Sequence[str] | None = None) -> list[Config]:
    """The stock engine one at a time and at the base's batch size; the fast engine with none of
    the levers, with each alone, with all but each, and with all.

    Variants that come out the same are there once.

    Raises
    ------
    UnknownNameError
        If a lever is none.
    ConfigError
        If a lever is off in ``base``, or none is on.
    """
    stock, full = base.replace(engine="stock"), base.replace(engine="fast")
    off = {name: OFF[name] for name in _levers(full, levers)}
    on = {name: value for name, value in full.flat().items() if name in off}
    bare = full.replace(**off)
    found = [
        *(stock.replace(batch_size=1), stock, bare),
        *(bare.replace(**{name: on[name]}) for name in off),
        *(full.replace(**{name: off[name]}) for name in off),
        full,
    ]
    return list({digest(config.flat()): config for config in found}.values())


def _levers(base: Config, wanted: Sequence[str] | None) -> list[str]:
    values = base.flat()
    on = [name for name in OFF if values[name] != OFF[name]]
    for name in wanted or ():
        if name not in OFF:
            raise UnknownNameError("lever", name, OFF)
        if name not in on:
            raise ConfigError(
                f"lever {name} is off in this setting ({name}={values[name]}), so there is nothing "
                f"to switch off; set {name}, or choose among {', '.join(on)}"
            )
    if not on or (wanted is not None and not wanted):
        raise ConfigError(f"an ablation needs a lever that is on, of {', '.join(OFF)}")
    return [name for name in OFF if name in (on if wanted is None else wanted)]
