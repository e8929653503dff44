"""Money, by hand."""

from __future__ import annotations

import re
from datetime import date

import pandas as pd
import pytest

from qvl_lab.analysis.frame import frame
from qvl_lab.analysis.money.cost import cost_column, price, symbol
from qvl_lab.analysis.money.prices import (
    KINDS,
    VCPU,
    Price,
    Rate,
    convert,
    find_price,
    price_list,
    prices,
    rates,
)
from qvl_lab.errors import ConfigError, UnknownNameError
from qvl_lab.hardware import gpu_table

OWN = """
[[price]]
gpu = "A10G"
provider = "own"
per_hour = 7.2
currency = "CNY"

[[price]]
gpu = "Cluster X"
provider = "own"
kind = "reserved"
per_hour = 2
currency = "EUR"
date = 2025-01-31
source = "our contract"

[[rate]]
base = "EUR"
quote = "CNY"
rate = 8
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "prices.toml"
    path.write_text(OWN)
    return path


@pytest.fixture
def seconds():
    """62 minutes per 100 images, between 60 and 65; and a setting that ran out of memory."""
    columns = {"s_per_100_images": [3720.0, None]}
    columns |= {"s_per_100_images_low": [3600.0, None], "s_per_100_images_high": [3900.0, None]}
    return pd.DataFrame(columns)


# ---- the packaged table ----


@pytest.mark.parametrize("entry", price_list(), ids=lambda p: f"{p.gpu} {p.provider} {p.kind}")
def test_every_packaged_price_is_dated_sourced_and_of_a_known_gpu(entry):
    assert re.fullmatch(r"undated|\d{4}(-\d\d){0,2}", entry.date)
    if len(entry.date) == 10:
        date.fromisoformat(entry.date)
    assert len(entry.source) > 8
    assert entry.source != Price.source  # nobody gave it
    assert entry.gpu in {*gpu_table(), VCPU}
    assert entry.currency in ("CNY", "USD")


@pytest.mark.parametrize("rate", rates(), ids=lambda r: f"{r.base}-{r.quote}")
def test_every_packaged_rate_is_dated_and_sourced(rate):
    assert date.fromisoformat(rate.date)
    assert rate.source != Rate.source


def test_the_article_price_is_eight_tenths_of_a_yuan_a_minute():
    found = find_price("A10G", "article")
    assert (found.provider, found.currency, found.date) == ("article", "CNY", "undated")
    assert found.per_hour == pytest.approx(0.8 * 60)
    assert found.label == "A10G article on demand, 48 CNY/h (undated)"


def test_prices_are_a_table_with_a_row_per_price(own):
    table = prices(own)
    assert len(table) == len(price_list()) + 2
    assert table.iloc[0]["provider"] == "own"
    assert set(table["kind"]) <= set(KINDS)


# ---- finding a price ----


def test_case_does_not_matter():
    assert find_price("a10g", "AWS", "ON_DEMAND") == find_price("A10G", "aws", "on_demand")


def test_on_demand_is_preferred_and_spot_found_by_name():
    kinds = {p.kind for p in price_list() if (p.gpu, p.provider) == ("H200", "runpod")}
    assert kinds == {"on_demand", "spot"}
    assert find_price("H200", "runpod").kind == "on_demand"
    assert find_price("H200", "runpod", "spot").per_hour < find_price("H200", "runpod").per_hour


def test_the_users_file_comes_first(own):
    assert find_price("A10G", file=own).per_hour == 7.2
    assert find_price("A10G", "article", file=own).per_hour == 48
    assert find_price("Cluster X", file=own).date == "2025-01-31"


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (("A1OG",), "unknown GPU 'A1OG'. Did you mean 'A10G'"),
        (
            ("A10G", "asw"),
            "unknown provider for A10G 'asw'. Did you mean 'aws'. Allowed: art.*, aws$",
        ),
        (("A10G", "aws", "spot"), "unknown kind for A10G 'spot'. Allowed: on_demand$"),
    ],
)
def test_unknown_names_list_what_there_is(wanted, message):
    with pytest.raises(UnknownNameError, match=message):
        find_price(*wanted)


# ---- prices, rates and files that cannot be used ----


@pytest.mark.parametrize("amount", [0, -1, float("inf"), float("nan"), "3", True, None])
def test_a_price_is_a_positive_number(amount):
    with pytest.raises(ConfigError, match="per_hour must be a number above 0, not"):
        Price(gpu="L4", provider="x", per_hour=amount, currency="CNY")
    with pytest.raises(ConfigError, match="exchange rate must be a number above 0, not"):
        Rate(base="USD", quote="CNY", rate=amount)


@pytest.mark.parametrize("code", ["cny", "RMB2", "US", "¥", 5, None])
def test_a_currency_is_a_code(code):
    with pytest.raises(ConfigError, match="three capital letters such as CNY or USD, not"):
        Price(gpu="L4", provider="x", per_hour=1, currency=code)


def test_a_price_kind_is_one_of_three():
    with pytest.raises(UnknownNameError, match=r"unknown price kind 'on demand'.*'on_demand'"):
        Price(gpu="L4", provider="x", per_hour=1, currency="CNY", kind="on demand")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[price]]\ngpu = 'L4'\n", "price 1 of .* is incomplete: .*'provider'"),
        (
            OWN + "[[price]]\nprise = 3\n",
            "unknown field in price 3 of .* 'prise'.*'price'|per_hour",
        ),
        (OWN.replace("7.2", "-7.2"), r"per_hour must be a number above 0, not -7\.2"),
        (OWN.replace('"CNY"', '"RMB1"', 1), "not 'RMB1'"),
        (OWN.replace('"Cluster X"', "5"), "gpu of a price must be text, not 5"),
        (
            OWN.replace("[[price]]", "[[prices]]"),
            "unknown table in .* 'prices'. Did you mean 'price'",
        ),
        ("[price]\ngpu = 'L4'\n", r"price in .* must be a list of tables, \[\[price\]\]"),
        ("price = 5\n", "must be a list of tables"),
        ("[[price]\n", "cannot read prices from"),
    ],
)
def test_mistakes_in_a_price_file_are_named(text, message, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        prices(path)


def test_a_bad_rate_in_a_price_file_is_named(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[[rate]]\nbase = "USD"\nquote = "CNY"\nrate = "7"\n')
    with pytest.raises(ConfigError, match="exchange rate must be a number above 0, not '7'"):
        rates(path)


def test_a_price_file_must_exist(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read prices from .*none\.toml"):
        find_price("A10G", file=tmp_path / "none.toml")


# ---- currencies ----

DOLLARS = Price(gpu="L4", provider="x", per_hour=2.0, currency="USD")
YUAN = Price(gpu="L4", provider="x", per_hour=14.0, currency="CNY")


def test_the_packaged_rate_works_in_both_directions():
    rate = next(r for r in rates() if (r.base, r.quote) == ("USD", "CNY"))
    there, used = convert(DOLLARS, "CNY")
    assert (there.per_hour, there.currency) == (pytest.approx(2 * rate.rate), "CNY")
    assert used == rate
    back, used = convert(YUAN, "USD")
    assert (back.per_hour, back.currency) == (pytest.approx(14 / rate.rate), "USD")
    assert used == rate


def test_a_given_rate_comes_before_the_packaged_one():
    converted, rate = convert(DOLLARS, "CNY", {"USD": 7.5})
    assert converted.per_hour == 15.0
    assert rate == Rate(base="USD", quote="CNY", rate=7.5)
    assert rate.source == "given by the user"


def test_a_rate_of_the_users_file_is_used(own):
    euros = find_price("Cluster X", file=own)
    assert convert(euros, "CNY", file=own)[0].per_hour == 16.0
    assert convert(YUAN, "EUR", file=own)[0].per_hour == 14 / 8


def test_the_same_currency_needs_no_rate():
    assert convert(YUAN, "CNY", {"CNY": 3.0}) == (YUAN, None)


def test_no_rate_names_the_option():
    message = (
        r"no exchange rate from USD to EUR; give one, exchange_rates=\{'USD': ...\} or --rate USD"
    )
    with pytest.raises(ConfigError, match=message):
        convert(DOLLARS, "EUR")


def test_a_rate_of_zero_is_refused_rather_than_replaced():
    with pytest.raises(ConfigError, match="exchange rate must be a number above 0, not 0"):
        convert(DOLLARS, "CNY", {"USD": 0})


# ---- cost columns ----


def test_the_articles_62_minutes_cost_49_yuan_60(seconds):
    priced = price(seconds, gpu="A10G", provider="article")
    row = priced.iloc[0]
    assert row["cost_cny_per_100_images"] == pytest.approx(49.6)
    assert row["cost_cny_per_100_images_low"] == pytest.approx(48.0)
    assert row["cost_cny_per_100_images_high"] == pytest.approx(52.0)
    assert row["cost_cny_per_1000_answers"] == pytest.approx(496.0)
    assert priced.iloc[1].filter(like="cost_").isna().all()


def test_per_image_counts_images_and_per_answer_counts_answers(seconds):
    """Two questions about an image: 100 images take 200 answers."""
    row = price(seconds.assign(questions_per_image=2.0), gpu="A10G", provider="article").iloc[0]
    assert row["cost_cny_per_100_answers"] == pytest.approx(49.6)
    assert row["cost_cny_per_100_images"] == pytest.approx(99.2)
    assert row["cost_cny_per_100_images_high"] == pytest.approx(104.0)
    assert row["cost_cny_per_1000_answers"] == pytest.approx(496.0)


def test_what_an_image_costs_is_unknown_where_its_questions_are(seconds):
    priced = price(seconds.assign(questions_per_image=None), gpu="A10G", provider="article")
    assert priced["cost_cny_per_100_images"].isna().all()
    assert priced.loc[0, "cost_cny_per_100_answers"] == pytest.approx(49.6)
    assert cost_column(priced) == "cost_cny_per_100_answers"


def test_idle_time_is_paid_too(seconds):
    row = price(seconds, gpu="A10G", provider="article", utilisation=0.4).iloc[0]
    assert row["cost_cny_per_100_images"] == pytest.approx(49.6 / 0.4)
    assert row["cost_cny_per_100_images_high"] == pytest.approx(52.0 / 0.4)


def test_another_currency_names_the_columns(seconds):
    priced = price(seconds, gpu="A10G", provider="aws", currency="CNY", exchange_rates={"USD": 7})
    assert priced.loc[0, "cost_cny_per_100_images"] == pytest.approx(1.006 * 7 * 62 / 60)
    assert priced.attrs["price"]["currency"] == "USD"
    assert priced.attrs["rate"]["rate"] == 7
    assert "cost_usd_per_100_images" not in priced
    dollars = price(seconds, gpu="A10G", provider="aws")
    assert dollars.loc[0, "cost_usd_per_100_images"] == pytest.approx(1.006 * 62 / 60)


def test_a_price_of_your_own(seconds):
    priced = price(seconds, per_hour=6, utilisation=0.5)
    assert priced.loc[0, "cost_cny_per_100_images"] == pytest.approx(6 * 62 / 60 / 0.5)
    assert priced.attrs["price"]["provider"] == "own price"
    assert price(seconds, gpu="MI300X", per_hour=6).attrs["price"]["gpu"] == "MI300X"
    assert priced.attrs["utilisation"] == 0.5
    euros = price(seconds, per_hour=6, currency="EUR")
    assert euros.loc[0, "cost_eur_per_100_images"] == pytest.approx(6.2)


def test_provenance_is_kept_and_the_frame_is_not_changed(seconds):
    before = seconds.copy()
    priced = price(seconds, gpu="A10G", provider="aws")
    pd.testing.assert_frame_equal(seconds, before)
    assert seconds.attrs == {}
    attrs = priced.attrs
    assert (attrs["price"]["date"], attrs["currency"], attrs["rate"]) == ("2025-11-30", "USD", None)
    assert "AWS" in attrs["price"]["source"]


@pytest.mark.parametrize("utilisation", [0, -0.1, 1.01, float("nan")])
def test_utilisation_is_a_share(seconds, utilisation):
    with pytest.raises(ConfigError, match="utilisation must be above 0 and at most 1, not"):
        price(seconds, gpu="A10G", utilisation=utilisation)


def test_a_gpu_or_a_price_is_needed(seconds):
    with pytest.raises(ConfigError, match=r"name a GPU .see 'qvl-lab prices'. or give per_hour"):
        price(seconds)


def test_runs_can_be_priced(make_run, make_repeat):
    table = price(frame([make_run([make_repeat(36.0, 10)]), make_run(status="oom")]), per_hour=10)
    assert table.loc[0, "cost_cny_per_100_images"] == pytest.approx(1.0)  # 360 s
    assert pd.isna(table.loc[1, "cost_cny_per_100_images"])


def test_cost_column_is_found_or_asked_for(seconds):
    assert cost_column(price(seconds, per_hour=1)) == "cost_cny_per_100_images"
    with pytest.raises(ConfigError, match="call price"):
        cost_column(seconds)


@pytest.mark.parametrize(("code", "sign"), [("CNY", "¥"), ("USD", "$"), ("AUD", "AUD ")])
def test_symbol(code, sign):
    assert symbol(code) == sign


@pytest.mark.parametrize("date", ["2026/11/01", "01.11.2026", "2026-13-01", "soon", ""])
def test_the_date_of_a_price_is_iso(date):
    with pytest.raises(ConfigError, match="date of a price is ISO"):
        Price(gpu="Z", provider="us", per_hour=1, currency="CNY", date=date)


def test_utilisation_in_percent_is_understood_and_refused(make_run):
    with pytest.raises(ConfigError, match=r"not 40; did you mean 0\.4\?"):
        price(frame([make_run()]), per_hour=1, utilisation=40)


def test_a_file_with_a_wrong_rate_gives_no_prices(tmp_path):
    row = '[[price]]\ngpu = "Z"\nprovider = "us"\nper_hour = 1\ncurrency = "CNY"\n'
    (tmp_path / "own.toml").write_text(row + '[[rate]]\nfrom = "USD"\nto = "CNY"\nrate = 7\n')
    with pytest.raises(ConfigError, match="field in rate 1 of"):
        find_price("Z", file=tmp_path / "own.toml")
