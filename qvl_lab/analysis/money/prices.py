"""Prices of GPU hours and exchange rates, each with a date and a source.

A price is found by GPU and provider in the packaged table, in a TOML file of the user's with the
same layout, or given as a number. Nothing is converted between currencies without a stated rate.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd

from qvl_lab.assets import asset
from qvl_lab.errors import ConfigError, UnknownNameError

KINDS = ("on_demand", "spot", "reserved")
#: The "GPU" of a price for one virtual CPU, by which a run on a CPU is priced.
VCPU = "vCPU"
#: A price older than so many days is said to be old.
OLD_DAYS = 90
_ISO_DATE = re.compile(r"\d{4}(-(0[1-9]|1[0-2])(-(0[1-9]|[12]\d|3[01]))?)?")


@dataclass(frozen=True, kw_only=True)
class Price:
    """What one GPU costs for an hour of wall time.

    ``currency`` is an ISO 4217 code; ``date`` is ISO 8601, or "undated" if the source gives none.
    ``gpus_per_machine`` says how many GPUs are rented together, None if that is not known;
    ``region``, ``url`` and ``note``, what is doubtful about the price, are "" if there is none.
    """

    gpu: str
    provider: str
    per_hour: float
    currency: str
    kind: str = "on_demand"
    date: str = "undated"
    source: str = "given by the user"
    region: str = ""
    url: str = ""
    gpus_per_machine: int | None = None
    note: str = ""

    def __post_init__(self) -> None:
        for name in ("gpu", "provider", "date", "source", "region", "url", "note"):
            if not isinstance(getattr(self, name), str):
                raise ConfigError(f"{name} of a price must be text, not {getattr(self, name)!r}")
        count = self.gpus_per_machine
        if count is not None and (type(count) is not int or count < 1):
            raise ConfigError(f"gpus_per_machine must be a whole number above 0, not {count!r}")
        if self.date != "undated" and not _ISO_DATE.fullmatch(self.date):
            raise ConfigError(
                "the date of a price is ISO (2026-11-01, 2026-11, 2026) or undated, not "
                f"{self.date!r}"
            )
        if self.kind not in KINDS:
            raise UnknownNameError("price kind", self.kind, KINDS)
        if not _positive(self.per_hour):
            raise ConfigError(f"per_hour must be a number above 0, not {self.per_hour!r}")
        _check_currency(self.currency)

    def of(self, seconds: Any, utilisation: float = 1.0) -> Any:
        """What seconds of wall time cost, in ``currency``; of a number, an array or a Series.

        Parameters
        ----------
        utilisation : float
            Share (0-1] of the paid time that does this work; idle time is paid too.
        """
        return seconds * self.per_hour / 3600 / utilisation

    @property
    def label(self) -> str:
        """For people: "A10G article on demand, 48 CNY/h (2025)"."""
        kind = self.kind.replace("_", " ")
        amount = f"{self.per_hour:.4g} {self.currency}/h"
        return f"{self.gpu} {self.provider} {kind}, {amount} ({self.date})"


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How many units of ``quote`` one unit of ``base`` buys."""

    base: str
    quote: str
    rate: float
    date: str = "undated"
    source: str = "given by the user"

    def __post_init__(self) -> None:
        _check_currency(self.base)
        _check_currency(self.quote)
        if not _positive(self.rate):
            raise ConfigError(f"an exchange rate must be a number above 0, not {self.rate!r}")


def price_list(file: str | Path | None = None) -> list[Price]:
    """The packaged prices, after those of ``file`` if one is given.

    Raises
    ------
    ConfigError
        If the file cannot be read, or a price or a rate lacks a field or has an unknown one.
    """
    if file:
        _entries(file, "rate", Rate)  # a file is right as a whole, or refused
    return [*(_entries(file, "price", Price) if file else []), *_packaged("price", Price)]


def rates(file: str | Path | None = None) -> list[Rate]:
    """The packaged exchange rates, after those of ``file`` if one is given.

    Errors are as of :func:`price_list`.
    """
    return [*(_entries(file, "rate", Rate) if file else []), *_packaged("rate", Rate)]


def prices(file: str | Path | None = None) -> pd.DataFrame:
    """The packaged prices, after those of ``file`` if one is given.

    Returns
    -------
    DataFrame
        One row per price, with the fields of :class:`Price`.

    Raises
    ------
    ConfigError
        As :func:`price_list`.
    """
    return pd.DataFrame([asdict(p) for p in price_list(file)])


def find_price(
    gpu: str,
    provider: str | None = None,
    kind: str | None = None,
    *,
    file: str | Path | None = None,
) -> Price:
    """The first price that matches, ignoring case; the user's file comes before the package's.

    Without a kind, on demand is preferred. Without a provider this is one of several prices that
    may differ much: :func:`alternatives` lists them.

    Raises
    ------
    UnknownNameError
        If no entry has this GPU, or none of its entries has this provider or kind.
    """
    found = price_list(file)
    for field, wanted in (("gpu", gpu), ("provider", provider), ("kind", kind)):
        if wanted is None:
            continue
        allowed = dict.fromkeys(getattr(p, field) for p in found)
        found = [p for p in found if getattr(p, field).lower() == wanted.lower()]
        if not found:
            what = field if field == "gpu" else f"{field} for {gpu}"
            raise UnknownNameError(what.replace("gpu", "GPU"), wanted, allowed)
    return min(found, key=lambda p: KINDS.index(p.kind))


def alternatives(price: Price, file: str | Path | None = None) -> list[Price]:
    """All known prices of the same GPU and kind, whoever the provider, with this one."""
    alike = [
        p
        for p in price_list(file)
        if (p.gpu.lower(), p.kind) == (price.gpu.lower(), price.kind) and p != price
    ]
    return [price, *alike]


def price_range(known: list[Price], file: str | Path | None = None) -> str:
    """What these prices lie between, in the first one's currency: "2.69 to 6.88 USD/h".

    Those for which no exchange rate is known are left out.
    """
    currency = known[0].currency
    amounts = []
    for found in known:
        try:
            amounts.append(convert(found, currency, file=file)[0].per_hour)
        except ConfigError:
            continue
    return f"{min(amounts):.4g} to {max(amounts):.4g} {currency}/h"


def age_days(day: str, today: date | None = None) -> int | None:
    """How long ago a date of the table was, at most; None for "undated".

    A month or a year that names no day counts from its first.
    """
    if day == "undated":
        return None
    year, month, of_month = (*(int(part) for part in day.split("-")), 1, 1)[:3]
    return ((today or date.today()) - date(year, month, of_month)).days


def age_said(day: str, today: date | None = None) -> str:
    """ "undated", "261 days old", or "" for a date that is recent enough."""
    age = age_days(day, today)
    if age is None:
        return "undated"
    return f"{age} days old" if age > OLD_DAYS else ""


def machine_price(cpus: int, file: str | Path | None = None) -> Price:
    """What an hour of a CPU machine with so many virtual CPUs costs.

    Raises
    ------
    UnknownNameError
        If the table has no price of a virtual CPU.
    """
    one = find_price(VCPU, file=file)
    per_hour = one.per_hour * cpus
    return replace(one, gpu=f"{cpus} {VCPU}", per_hour=per_hour)


def convert(
    price: Price,
    currency: str,
    exchange_rates: Mapping[str, float] | None = None,
    *,
    file: str | Path | None = None,
) -> tuple[Price, Rate | None]:
    """The price in another currency, and the rate that was used (None if none was needed).

    Parameters
    ----------
    exchange_rates : mapping, optional
        Currency code to the units of ``currency`` that one unit of it buys, ``{"USD": 7.1}``.

    Raises
    ------
    ConfigError
        If no rate between the two is known.
    """
    _check_currency(currency)
    for code in exchange_rates or {}:
        _check_currency(code)
    if price.currency == currency:
        return price, None
    if price.currency in (exchange_rates or {}):
        given = (exchange_rates or {})[price.currency]
        known = [Rate(base=price.currency, quote=currency, rate=given)]
    else:
        known = rates(file)
    for rate in known:
        if (rate.base, rate.quote) == (price.currency, currency):
            return replace(price, per_hour=price.per_hour * rate.rate, currency=currency), rate
        if (rate.quote, rate.base) == (price.currency, currency):
            return replace(price, per_hour=price.per_hour / rate.rate, currency=currency), rate
    raise ConfigError(
        f"no exchange rate from {price.currency} to {currency}; give one, "
        f"exchange_rates={{'{price.currency}': ...}} or --rate {price.currency}=..."
    )


def _packaged(table: str, cls: type) -> list[Any]:
    return _entries(asset("prices.toml"), table, cls)


def _entries(file: str | Path, table: str, cls: type) -> list[Any]:
    try:
        tables = tomllib.loads(Path(file).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise ConfigError(f"cannot read prices from {file}: {e}") from e
    for name in tables:
        if name not in ("price", "rate"):
            raise UnknownNameError(f"table in {file}", name, ("price", "rate"))
    rows = tables.get(table, [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{table} in {file} must be a list of tables, [[{table}]]")
    allowed = [f.name for f in fields(cls)]
    entries = []
    for number, row in enumerate(rows, 1):
        for name in row:
            if name not in allowed:
                raise UnknownNameError(f"field in {table} {number} of {file}", name, allowed)
        try:
            entries.append(cls(**{k: str(v) if isinstance(v, date) else v for k, v in row.items()}))
        except TypeError as e:
            raise ConfigError(f"{table} {number} of {file} is incomplete: {e}") from e
    return entries


def _positive(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 < value < float("inf")


def _check_currency(code: Any) -> None:
    if not (isinstance(code, str) and len(code) == 3 and code.isalpha() and code.isupper()):
        raise ConfigError(f"a currency is three capital letters such as CNY or USD, not {code!r}")
