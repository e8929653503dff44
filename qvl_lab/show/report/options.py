"""What a review is asked for: one object from the command line to the notebook."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from qvl_lab.errors import UnknownNameError


@dataclass(frozen=True, kw_only=True)
class ReviewOptions:
    """Price, today's setting, limits, monthly volume and language of a review.

    Parameters
    ----------
    gpu, provider, kind, per_hour, currency, exchange_rates, prices_file, utilisation
        As in :func:`qvl_lab.price`. Without a GPU the measured one is priced, and a run on a CPU
        as a CPU machine; if the table has no price for it, costs are in seconds.
    current, min_quality, max_quality_loss, max_vram_gib, max_ttft_s, max_failed_share
        As in :func:`qvl_lab.recommend`.
    monthly_images : int, optional
        For the monthly sum; without it the report says what a machine does in a month instead.
    peak_hour_images : int, optional
        Images of the busiest hour, for the machines kept on; by default they come evenly.
    ceilings : path, optional
        What the device can do at most, as ``qvl-lab doctor --ceilings`` writes it. By default the
        file beside the run file, ``runs.ceilings.json``, or else the table of GPUs.
    lang : str
        ``"en"`` or ``"zh"``.
    """

    gpu: str | None = None
    provider: str | None = None
    kind: str | None = None
    per_hour: float | None = None
    currency: str = "CNY"
    exchange_rates: Mapping[str, float] = field(default_factory=dict, metadata={"flag": "--rate"})
    prices_file: str | Path | None = field(default=None, metadata={"flag": "--prices"})
    utilisation: float = 1.0
    current: Mapping[str, Any] = field(default_factory=dict)
    monthly_images: int | None = None
    peak_hour_images: int | None = None
    min_quality: float | None = None
    max_quality_loss: float = 0.02
    max_vram_gib: float | None = None
    max_ttft_s: float | None = None
    max_failed_share: float | None = None
    ceilings: str | Path | None = None
    lang: str = "en"

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Options by name; None leaves one at its default.

        Raises
        ------
        UnknownNameError
            If there is no such option.
        """
        names = [f.name for f in fields(cls)]
        for name in values:
            if name not in names:
                raise UnknownNameError("option of a report", name, names)
        return cls(**{name: value for name, value in values.items() if value is not None})

    def given(self) -> dict[str, Any]:
        """The options that differ from their defaults, as plain values."""
        default = type(self)()
        changed = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in changed.items()
            if value != getattr(default, name)
        }
