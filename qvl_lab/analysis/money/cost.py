"""Money: seconds times a price that has a date and a source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from qvl_lab.analysis.money.prices import Price, convert, find_price
from qvl_lab.errors import ConfigError

SYMBOLS = {"CNY": "¥", "USD": "$", "EUR": "€", "GBP": "£", "JPY": "JP¥"}


def price(
    frame: pd.DataFrame,
    gpu: str | None = None,
    provider: str | None = None,
    kind: str | None = None,
    *,
    per_hour: float | None = None,
    currency: str | None = None,
    exchange_rates: Mapping[str, float] | None = None,
    utilisation: float = 1.0,
    file: str | Path | None = None,
) -> pd.DataFrame:
    """Add cost columns to a frame of runs.

    Parameters
    ----------
    frame : DataFrame
        From :func:`qvl_lab.analysis.frame.frame`.
    gpu, provider, kind : str, optional
        Which price; see :func:`find_price`.
    per_hour : float, optional
        A price of your own per GPU hour, in ``currency`` (default CNY).
    currency : str, optional
        ISO code of the result; by default the price's own.
    utilisation : float
        Share (0-1] of the paid time that does this work; idle time is paid too.

    Returns
    -------
    DataFrame
        As :func:`with_costs`.

    Raises
    ------
    ConfigError
        If neither a GPU nor a price of your own is given, or one cannot be used.
    """
    check_utilisation(utilisation)
    if per_hour is not None:
        quoted = Price(
            gpu=gpu or "GPU",
            provider=provider or "own price",
            per_hour=per_hour,
            currency=currency or "CNY",
            kind=kind or "on_demand",
        )
    elif gpu:
        quoted = find_price(gpu, provider, kind, file=file)
    else:
        raise ConfigError("name a GPU (see 'qvl-lab prices') or give per_hour")
    return with_costs(
        frame,
        quoted,
        currency=currency,
        exchange_rates=exchange_rates,
        utilisation=utilisation,
        file=file,
    )


def with_costs(
    frame: pd.DataFrame,
    quoted: Price,
    *,
    currency: str | None = None,
    exchange_rates: Mapping[str, float] | None = None,
    utilisation: float = 1.0,
    file: str | Path | None = None,
) -> pd.DataFrame:
    """Add cost columns at a price.

    Per image counts images, per answer counts answers: a workload that asks three questions about
    every image needs three answers for an image. Where a frame's ``questions_per_image`` is not
    known, what an image costs is not either; a frame without that column is taken to ask one.

    Returns
    -------
    DataFrame
        A copy with ``cost_CUR_per_100_images``, ``cost_CUR_per_100_answers`` and
        ``cost_CUR_per_1000_answers`` (CUR is the currency in lower case), each with ``_low`` and
        ``_high``. ``attrs["price"]`` holds the price as quoted, ``attrs["rate"]`` the exchange
        rate, ``attrs["utilisation"]``, ``attrs["currency"]``, ``attrs["cost_per_hour"]`` what an
        hour of this work costs in it.
    """
    check_utilisation(utilisation)
    converted, rate = convert(quoted, currency or quoted.currency, exchange_rates, file=file)
    priced = frame.copy()
    images = pd.to_numeric(frame.get("questions_per_image", pd.Series(1.0, frame.index)))
    counts: dict[str, Any] = {
        "per_100_images": 100 * images,
        "per_100_answers": 100,
        "per_1000_answers": 1000,
    }
    for unit, answers in counts.items():
        for bound in ("", "_low", "_high"):
            seconds = pd.to_numeric(priced[f"s_per_100_images{bound}"]) / 100
            column = f"cost_{converted.currency.lower()}_{unit}{bound}"
            priced[column] = converted.of(seconds * answers, utilisation)
    priced.attrs |= {
        "price": asdict(quoted),
        "rate": asdict(rate) if rate else None,
        "currency": converted.currency,
        "utilisation": utilisation,
        "cost_per_hour": converted.of(3600, utilisation),
    }
    return priced


def check_utilisation(utilisation: float) -> None:
    """Raise a ConfigError unless it is a share above 0."""
    if not 0 < utilisation <= 1:
        hint = f"; did you mean {utilisation / 100:g}?" if 1 < utilisation <= 100 else ""
        raise ConfigError(f"utilisation must be above 0 and at most 1, not {utilisation!r}{hint}")


def cost_column(frame: pd.DataFrame) -> str:
    """The name of a priced frame's cost per 100 images.

    That of 100 answers, where no row says how many questions an image has.

    Raises
    ------
    ConfigError
        If the frame has not been priced.
    """
    names = [str(column) for column in frame.columns if str(column).startswith("cost_")]
    by_image, by_answer = (
        [name for name in names if name.endswith(unit)]
        for unit in ("_per_100_images", "_per_100_answers")
    )
    if not by_image:
        raise ConfigError("the frame has no cost columns; call price(frame, gpu=...) first")
    if by_answer and frame[by_image[0]].isna().all() and frame[by_answer[0]].notna().any():
        return by_answer[0]
    return by_image[0]


def symbol(currency: str) -> str:
    """The currency's sign, or its code and a space."""
    return SYMBOLS.get(currency, f"{currency} ")
