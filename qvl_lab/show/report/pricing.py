"""Whose price a review takes, how old it is, and what else is known."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from qvl_lab.analysis.money.cost import check_utilisation, price, with_costs
from qvl_lab.analysis.money.prices import (
    KINDS,
    VCPU,
    Price,
    convert,
    find_price,
    machine_price,
    price_list,
)
from qvl_lab.errors import ConfigError, UnknownNameError
from qvl_lab.show.report.options import ReviewOptions
from qvl_lab.show.report.selection import environment, measured_gpu, on_gpu

ARTICLE_GPU, ARTICLE_PROVIDER = "A10G", "article"


@dataclass(frozen=True, kw_only=True)
class Quote:
    """A price of the table in the review's currency: of the same GPU, another provider or kind."""

    price: Price
    per_hour: float


def priced(rows: pd.DataFrame, compared: pd.Series, options: ReviewOptions) -> pd.DataFrame:
    """Rows with cost columns; without them where nobody named a price and none is known.

    Without a GPU the measured one is priced; a run on a CPU as a machine with as many virtual
    CPUs as it saw.

    Parameters
    ----------
    compared : Series of bool
        Rows that are reviewed: what they ran on is priced.

    Raises
    ------
    ConfigError
        If a price cannot be used, or a provider or kind is named that the measured GPU has no
        price of.
    """
    if options.gpu is not None or options.per_hour is not None:
        return price(
            rows,
            options.gpu,
            options.provider,
            options.kind,
            per_hour=options.per_hour,
            currency=options.currency,
            exchange_rates=options.exchange_rates,
            utilisation=options.utilisation,
            file=options.prices_file,
        )
    found = measured_price(rows[compared], options)
    if found is not None:
        return with_costs(
            rows,
            found,
            currency=options.currency,
            exchange_rates=options.exchange_rates,
            utilisation=options.utilisation,
            file=options.prices_file,
        )
    check_utilisation(options.utilisation)
    unpriced = rows.copy()
    unpriced.attrs |= {"price": None, "rate": None, "currency": options.currency}
    unpriced.attrs["utilisation"] = options.utilisation
    return unpriced


def measured_price(frame: pd.DataFrame, options: ReviewOptions) -> Price | None:
    """The price of what the runs ran on; None if none is known.

    Raises
    ------
    ConfigError
        If a provider or kind is named that it has no price of.
    """
    try:
        if on_gpu(frame):
            here = measured_gpu(frame)
            name = here.name if here else environment(frame, "gpu") or ""
            return find_price(name, options.provider, options.kind, file=options.prices_file)
        cpus = environment(frame, "cpu_count")
        if cpus is not None and not options.provider and not options.kind:
            return machine_price(int(float(cpus)), options.prices_file)
    except UnknownNameError:
        pass
    if options.provider or options.kind:
        raise ConfigError(
            "a provider or kind of price needs a GPU: --gpu NAME; see 'qvl-lab prices'"
        )
    return None


def is_machines_own(frame: pd.DataFrame, options: ReviewOptions) -> bool:
    """Whether the price is that of the machine which was measured."""
    if options.per_hour is not None and options.gpu is None:
        return True
    quoted = frame.attrs["price"]
    if quoted is None or (options.gpu is None and not on_gpu(frame)):
        return True
    here = measured_gpu(frame)
    named = here.name if here else environment(frame, "gpu") if on_gpu(frame) else None
    return named is not None and named.lower() == str(quoted["gpu"]).lower()


def quotes(frame: pd.DataFrame, options: ReviewOptions, *, kind: str | None = None) -> list[Quote]:
    """Known prices of the priced GPU, of one kind or of all, the cheapest first.

    Prices for which no exchange rate is known are left out; a price of your own stands alone.
    """
    quoted = frame.attrs["price"]
    if quoted is None or options.per_hour is not None:
        return []
    known = [p for p in price_list(options.prices_file) if p.gpu.lower() == quoted["gpu"].lower()]
    found = _converted([one for one in known if kind in (None, one.kind)], options)
    return sorted(found, key=lambda quote: (KINDS.index(quote.price.kind), quote.per_hour))


def other_gpus(frame: pd.DataFrame, options: ReviewOptions) -> list[Quote]:
    """The cheapest known price on demand of every GPU but the priced one, the cheapest first."""
    quoted = frame.attrs["price"]
    if quoted is None:
        return []
    known = [p for p in price_list(options.prices_file) if p.kind == "on_demand"]
    others = [p for p in known if p.gpu.lower() not in (str(quoted["gpu"]).lower(), VCPU.lower())]
    cheapest: dict[str, Quote] = {}
    for quote in sorted(_converted(others, options), key=lambda quote: quote.per_hour):
        cheapest.setdefault(quote.price.gpu, quote)
    return list(cheapest.values())


def _converted(known: list[Price], options: ReviewOptions) -> list[Quote]:
    """The prices in the review's currency, as far as an exchange rate is known."""
    found = []
    for one in known:
        try:
            converted, _ = convert(
                one, options.currency, options.exchange_rates, file=options.prices_file
            )
        except ConfigError:
            continue
        found.append(Quote(price=one, per_hour=converted.per_hour))
    return found
