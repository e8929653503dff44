"""How old prices are, what other providers ask, and the price of a CPU machine."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import pytest

from qvl_lab.analysis.money.prices import (
    VCPU,
    Price,
    age_days,
    age_said,
    alternatives,
    find_price,
    machine_price,
    price_list,
    price_range,
    prices,
)
from qvl_lab.errors import ConfigError, UnknownNameError
from qvl_lab.hardware import gpu_table

DAY = date(2026, 11, 26)


@pytest.mark.parametrize(
    ("day", "days", "said"),
    [
        ("2026-11-09", 17, ""),
        ("2026-08-28", 90, ""),
        ("2026-08-27", 91, "91 days old"),
        ("2026-11", 25, ""),  # counts from its first
        ("2026", 329, "329 days old"),
        ("undated", None, "undated"),
    ],
)
def test_a_price_of_more_than_90_days_is_said_to_be_old(day, days, said):
    assert age_days(day, DAY) == days
    assert age_said(day, DAY) == said


def test_the_alternatives_are_of_the_same_gpu_and_kind():
    taken = find_price("H100")
    known = alternatives(taken)
    assert known[0] == taken
    assert {p.provider for p in known} == {"aws", "runpod", "runpod-lower", "lambda"}
    assert {(p.gpu, p.kind) for p in known} == {("H100", "on_demand")}
    assert price_range(known) == "2.69 to 6.88 USD/h"


def test_a_range_converts_currencies_and_leaves_out_what_has_no_rate():
    dollars = Price(gpu="L4", provider="x", per_hour=1.0, currency="USD")
    yuan = replace(dollars, per_hour=70.197, currency="CNY")
    francs = replace(dollars, per_hour=9000.0, currency="CHF")
    assert price_range([dollars, yuan, francs]) == "1 to 10 USD/h"


def test_every_price_can_be_chosen_by_name():
    for entry in price_list():
        assert find_price(entry.gpu, entry.provider, entry.kind) == entry


@pytest.mark.parametrize(
    ("gpu", "on_demand", "spot"),
    [("RTX 4090", 0.60, 0.34), ("L40S", 1.40, 0.79), ("L4", 0.78, 0.44)],
)
def test_runpods_spot_prices_are_not_filed_as_on_demand(gpu, on_demand, spot):
    assert find_price(gpu, "runpod").per_hour == on_demand
    assert find_price(gpu, "runpod", "spot").per_hour == spot
    assert find_price(gpu, "runpod").url.startswith("https://")


def test_what_is_doubtful_about_a_price_is_said():
    for provider in ("runpod", "runpod-lower"):
        assert "two prices" in find_price("H100", provider).note
    assert "another page" in find_price("H200", "runpod").note
    assert "as a whole" in find_price("L4", "aws").note
    assert find_price("L4", "aws").gpus_per_machine == 4


def test_a_cpu_machine_has_as_many_vcpus_as_it_has():
    one, four = find_price(VCPU), machine_price(4)
    assert four.per_hour == pytest.approx(4 * one.per_hour)
    assert four.gpu == "4 vCPU"
    assert (four.source, four.url, four.date) == (one.source, one.url, one.date)


def test_a_price_file_can_name_the_cpu(tmp_path):
    own = tmp_path / "own.toml"
    own.write_text('[[price]]\ngpu = "vCPU"\nprovider = "us"\nper_hour = 0.3\ncurrency = "CNY"\n')
    assert machine_price(2, own).per_hour == pytest.approx(0.6)
    with pytest.raises(UnknownNameError):
        find_price("vCPUs")


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "8"])
def test_gpus_of_a_machine_are_counted(count):
    with pytest.raises(ConfigError, match="gpus_per_machine must be a whole number above 0, not"):
        Price(gpu="L4", provider="x", per_hour=1, currency="CNY", gpus_per_machine=count)


@pytest.mark.parametrize("name", ["url", "region", "note"])
def test_url_region_and_note_are_text(name):
    with pytest.raises(ConfigError, match=f"{name} of a price must be text, not 5"):
        Price(gpu="L4", provider="x", per_hour=1, currency="CNY", **{name: 5})


def test_the_table_has_address_region_and_machine():
    assert {"url", "region", "gpus_per_machine", "note"} <= set(prices().columns)


def test_the_4090_computes_660_int8_operations():
    assert gpu_table()["RTX 4090"].int8_tops == 660
