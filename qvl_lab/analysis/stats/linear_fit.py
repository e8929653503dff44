"""Costs that fall along a straight line, and where the line reaches a value."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True, kw_only=True)
class LinearFit:
    """Least squares: ``cost(h) = base - slope * h``.

    Attributes
    ----------
    count : int
        Points that it was fitted to.
    mean, spread : float
        Mean of their hit rates, and the sum of squared distances from it.
    variance : float or None
        Of a point around the line; None where two points leave nothing to tell it from.
    """

    base: float
    slope: float
    count: int
    mean: float
    spread: float
    variance: float | None

    @classmethod
    def through(cls, hit_rates: pd.Series, costs: pd.Series) -> LinearFit | None:
        """The line through points; None without two different hit rates."""
        h, cost = hit_rates.to_numpy(float), costs.to_numpy(float)
        spread = float(((h - h.mean()) ** 2).sum()) if len(h) else 0.0
        if spread < 1e-12:
            return None
        slope = -float(((h - h.mean()) * (cost - cost.mean())).sum()) / spread
        base = float(cost.mean() + slope * h.mean())
        left = cost - (base - slope * h)
        variance = float((left**2).sum()) / (len(h) - 2) if len(h) > 2 else None
        return cls(
            base=base,
            slope=slope,
            count=len(h),
            mean=float(h.mean()),
            spread=spread,
            variance=variance,
        )

    def at(self, hit_rate: float) -> float:
        """The cost at a hit rate."""
        return self.base - self.slope * hit_rate

    def bounds(self) -> dict[str, tuple[float | None, float | None]]:
        """95% intervals of ``base`` and ``slope``, Student's t with ``count - 2`` degrees."""
        if self.variance is None:
            return {"base": (None, None), "slope": (None, None)}
        slope = math.sqrt(self.variance / self.spread)
        base = math.sqrt(self.variance * (1 / self.count + self.mean**2 / self.spread))
        half_base, half_slope = self._t() * base, self._t() * slope
        return {
            "base": (self.base - half_base, self.base + half_base),
            "slope": (self.slope - half_slope, self.slope + half_slope),
        }

    def reaches(
        self, target: float, target_variance: float | None
    ) -> tuple[float | None, float | None, float | None]:
        """The hit rate at which the cost has fallen to ``target``, with its 95% interval.

        Fieller's interval (1954, Journal of the Royal Statistical Society B 16): the hit rates
        at which the difference of line and target may be zero. None where the line does not
        fall; without bounds where it may not fall, or too little was measured to tell.
        """
        if self.slope <= 0:
            return None, None, None
        value = (self.base - target) / self.slope
        if self.variance is None or target_variance is None:
            return value, None, None
        g, over = self._t() ** 2, self.at(self.mean) - target
        a = self.slope**2 - g * self.variance / self.spread
        b = -self.slope * over
        c = over**2 - g * (self.variance / self.count + target_variance)
        if a <= 0:
            return value, None, None
        root = math.sqrt(max(0.0, b**2 - a * c))
        low, high = (self.mean + (sign * root - b) / a for sign in (-1, 1))
        return value, min(low, value), max(high, value)  # rounding apart, the value is within

    def _t(self) -> float:
        from scipy.stats import t

        return float(t.ppf(0.975, self.count - 2))
