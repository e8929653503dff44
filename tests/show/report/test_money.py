"""The money of a review: the month, the price and its age, images and answers, what if."""

from __future__ import annotations

import json
import re
from datetime import date
from typing import Any

import pytest
from IPython.display import HTML, Markdown

from qvl_lab.analysis.money import prices as price_table
from qvl_lab.analysis.money.prices import VCPU, find_price
from qvl_lab.errors import ConfigError
from qvl_lab.hardware import fingerprint
from qvl_lab.runs.store import Runs
from qvl_lab.show.report import sections
from qvl_lab.show.report.context import ReportContext
from qvl_lab.show.report.review import review
from qvl_lab.show.report.summary import headline_numbers

#: At this price a second costs a cent.
CENT_A_SECOND = {"per_hour": 36.0, "currency": "CNY"}
H100 = {
    "environment": fingerprint() | {"gpu": "NVIDIA H100 80GB HBM3"},
    "resolved": {"device": "cuda:0", "precision": "fp32"},
}
B200 = {
    "environment": fingerprint() | {"gpu": "NVIDIA B200"},
    "resolved": {"device": "cuda:0", "precision": "fp32"},
}


def text(parts: Any) -> str:
    return "\n".join(part.data for part in parts if isinstance(part, Markdown | HTML))


def first_page(page: ReportContext) -> str:
    return text(sections.headline(page))


def rows(page: str) -> list[list[str]]:
    found = re.findall(r"<tr[^>]*>(.*?)</tr>", page, re.DOTALL)
    return [cells for row in found if (cells := re.findall(r"<td>(.*?)</td>", row))]


@pytest.fixture
def pair(on_cpu):
    """Ten images in 10 s one by one and in 4 s in batches of four, on a device."""

    def make(**parts: Any) -> Runs:
        return Runs([on_cpu(1, 10.0, **parts), on_cpu(4, 4.0, **parts)])

    return make


@pytest.fixture
def in_november(monkeypatch):
    """The day that ages of prices are counted to."""

    class Day(date):
        @classmethod
        def today(cls) -> date:
            return date(2026, 11, 26)

    monkeypatch.setattr(price_table, "date", Day)


# ---- the month


def test_without_a_traffic_no_monthly_sum_is_invented(pair):
    said = first_page(review(pair(), **CENT_A_SECOND))
    assert "100,000" not in said
    assert "images a month" not in said
    assert "A machine kept on for a month costs ¥26,280" in said
    assert "can answer 2,628,000 images at most with today's setting, 6,570,000 with" in said
    assert "--monthly-images N" in said


def test_the_month_is_told_by_use_and_kept_on(pair):
    page = review(pair(), **CENT_A_SECOND, monthly_images=100_000)
    said = first_page(page)
    assert "At 100,000 images a month that is ¥1,000 today and ¥400 with the recommended" in said
    saving = r"That saves ¥600 a month \(¥(\d+) to ¥(\d+)\), ¥7,200 a year"
    low, high = map(int, re.search(saving, said).groups())
    assert 550 < low < 600 < high < 650
    assert "that is 2 machines today, busy 1.90% of the time, for ¥52,560 a month" in said
    assert "Machines that are kept on save nothing at this traffic." in said


def test_where_the_traffic_needs_fewer_gpus_keeping_them_on_saves_too(pair):
    page = review(pair(**H100), **CENT_A_SECOND, monthly_images=10_000_000)
    said = first_page(page)
    assert "that is 5 GPUs today" in said
    assert "and 3 GPUs with the recommended setting" in said
    assert "That saves ¥52,560 a month, ¥630,720 a year." in said


def test_the_busiest_hour_sets_the_machines(pair):
    even = review(pair(), **CENT_A_SECOND, monthly_images=100_000)
    peak = review(pair(), **CENT_A_SECOND, monthly_images=100_000, peak_hour_images=9_000)
    assert [row[3] for row in rows(text(sections.month(even)))] == ["2", "2", "2", "2"]
    assert [row[3] for row in rows(text(sections.month(peak)))] == ["4", "2", "9", "4"]


def test_three_times_the_traffic_is_looked_at(pair):
    page = text(sections.month(review(pair(), **CENT_A_SECOND, monthly_images=100_000)))
    assert [row[:3] for row in rows(page)] == [
        ["100,000", "Today", "¥1,000"],
        ["100,000", "Recommended", "¥400"],
        ["300,000", "Today", "¥3,000"],
        ["300,000", "Recommended", "¥1,200"],
    ]


def test_without_a_traffic_the_table_says_what_one_does_at_most(pair):
    page = text(sections.month(review(pair(), **CENT_A_SECOND)))
    assert rows(page)[0] == ["Today", "3,600", "86,400", "2,628,000"]


def test_a_saving_within_noise_is_not_summed_up(on_cpu):
    noisy = Runs([on_cpu(1, [9.0, 10.0, 11.0]), on_cpu(4, [8.5, 9.9, 11.0])])
    said = first_page(review(noisy, **CENT_A_SECOND, monthly_images=100_000))
    assert "The difference is within noise." in said
    assert "That saves" not in said


def test_a_saving_from_a_single_pass_is_no_noise(on_cpu):
    once = Runs([on_cpu(1, [10.0]), on_cpu(4, [4.0])])
    said = first_page(review(once, **CENT_A_SECOND, monthly_images=100_000))
    assert "That saves ¥600 a month, ¥7,200 a year." in said
    assert "noise" not in said


def test_a_start_is_in_the_money_and_pays_from_so_many_images(on_cpu):
    quick, slow = ({"load_s": 1.0, "warmup_s": warmup_s} for warmup_s in (10.0, 24.0))
    runs = Runs([on_cpu(1, 10.0, cold=quick), on_cpu(4, 4.0, cold=slow)])
    page = review(runs, **CENT_A_SECOND, monthly_images=100_000)
    # 21 s against 1 s to start, 0.4 s an image against 1: (21 - 1) / 0.6 images
    assert "it pays from 34 images a start" in first_page(page)
    assert "cold starts were not measured" not in first_page(page).lower()
    # a start a day, 21 s at a cent a second
    assert headline_numbers(page)["month"]["recommended"]["by_use"] == pytest.approx(
        400 + 365 / 12 * 0.21
    )


def test_starts_that_were_not_measured_are_said_to_be_left_out(pair):
    page = review(pair(), **CENT_A_SECOND, monthly_images=100_000)
    assert "Cold starts were not measured" in text(sections.month(page))


# ---- images and answers


def test_images_and_answers_are_told_apart(on_cpu):
    two = {"workload": {"name": "two", "fingerprint": "2" * 16, "items": 10, "images": 5}}
    page = review(Runs([on_cpu(1, 10.0, **two), on_cpu(4, 4.0, **two)]), **CENT_A_SECOND)
    said = first_page(page)
    assert "¥2.00 per 100 images today, ¥0.80" in said  # ten answers in ten seconds, two an image
    assert "An image is asked 2.00 questions here, and 100 answers cost ¥1.00 today" in said
    assert "<th>answers per second</th>" in said
    assert "can answer 1,314,000 images at most" in said


@pytest.mark.slow
def test_a_file_that_does_not_say_how_many_images_counts_answers(on_cpu):
    old = {"workload": {"name": "old", "fingerprint": "0" * 16, "items": 10}}
    page = review(Runs([on_cpu(1, 10.0, **old), on_cpu(4, 4.0, **old)]), **CENT_A_SECOND)
    assert "¥1.00 per 100 answers today, ¥0.40" in first_page(page)
    assert "<th>cost per 100 answers</th>" in first_page(page)
    for section in sections.SECTIONS:
        section(page)


# ---- the price


def test_a_cpu_run_is_priced_as_a_cpu_machine(pair):
    page = review(pair())
    quoted = page.frame.attrs["price"]
    cpus = fingerprint()["cpu_count"]
    assert quoted["per_hour"] == pytest.approx(cpus * find_price(VCPU).per_hour)
    said = first_page(page)
    assert "priced as a CPU machine" in said
    assert "A10G" not in said
    assert "⚠" not in said


@pytest.mark.slow
def test_a_gpu_without_a_price_is_reviewed_in_seconds(pair):
    page = review(pair(**B200), monthly_images=1000)
    said = first_page(page)
    assert "100 s per 100 images today, 40.0 s with fp32 · 256 px · batch 4: 60% less (" in said
    assert "No price of NVIDIA B200 is known, so costs are in seconds." in said
    assert "<th>time per 100 images</th>" in said
    assert "¥" not in said
    for section in sections.SECTIONS:
        section(page)
    assert headline_numbers(page)["cost_today"] is None
    assert headline_numbers(page)["s_today"] == pytest.approx(100.0)


def test_a_provider_needs_a_gpu_that_has_a_price(pair):
    with pytest.raises(ConfigError, match="a provider or kind of price needs a GPU"):
        review(pair(), provider="aws")
    with pytest.raises(ConfigError, match="a provider or kind of price needs a GPU"):
        review(pair(**B200), kind="spot")


def test_without_a_provider_the_range_is_said(pair):
    said = first_page(review(pair(**H100)))
    assert "No provider was named, so that of aws is taken; 4 prices of H100" in said
    low, high = (f"¥{100 * dollars * 7.0197 / 3600:.2f}" for dollars in (2.69, 6.88))
    assert f"at which 100 images cost {low} to {high} today" in said
    named = first_page(review(pair(**H100), gpu="H100", provider="runpod"))
    assert "No provider was named" not in named


def test_an_old_price_and_an_old_rate_are_said(pair, in_november):
    fresh = first_page(review(pair(**H100), gpu="H100", provider="aws", currency="USD"))
    assert "days old" not in fresh
    assert "The price is 6.88 USD/h: H100, aws, on demand, 2026-11-09." in fresh
    converted = first_page(review(pair(**H100), gpu="H100", provider="aws"))
    assert "The exchange rate is 322 days old." in converted
    old = first_page(review(pair(**H100), gpu="L40S", provider="runpod", currency="USD"))
    assert "It is 261 days old: check it." in old
    undated = first_page(review(pair(**H100), gpu="A10G", provider="article"))
    assert "It is undated: check it." in undated
    own = first_page(review(pair(), **CENT_A_SECOND))
    assert "undated: check" not in own


def test_provenance_says_region_address_doubt_and_machine(pair):
    doubtful = text(sections.provenance(review(pair(**H100), gpu="RTX 4090", provider="runpod")))
    assert "https://deploybase.ai/articles/runpod-gpu-pricing" in doubtful
    assert "another page of the site" in doubtful
    said = [first_page(review(pair(**H100), gpu="H100", provider=p)) for p in ("runpod", "aws")]
    assert ["doubtful" in page for page in said] == [True, False]
    four = text(sections.provenance(review(pair(**H100), gpu="L4", provider="aws")))
    assert "us-east-1" in four
    assert "4 GPUs; fewer are not rented at this price" in four


# ---- what if


def test_other_assumptions_change_the_money_and_not_the_share(pair):
    page = text(sections.what_if(review(pair(), **CENT_A_SECOND, utilisation=0.8)))
    found = {row[0]: row[1:] for row in rows(page)}
    assert found["as priced here"] == ["¥1.25", "¥0.50", "¥0.75"]
    assert found["price −20%"] == ["¥1.00", "¥0.40", "¥0.60"]
    assert found["price +20%"] == ["¥1.50", "¥0.60", "¥0.90"]
    assert found["100% of the paid time is used"] == ["¥1.00", "¥0.40", "¥0.60"]
    assert found["40% of the paid time is used"] == ["¥2.50", "¥1.00", "¥1.50"]


def test_the_same_run_stands_under_every_price_of_its_gpu(pair):
    page = text(sections.what_if(review(pair(**H100), provider="aws", currency="USD")))
    assert "measured on H100 only" in page
    offered = {row[0]: row[1] for row in rows(page) if "USD/h: H100" in row[0]}
    assert len(offered) == 4
    assert offered["6.88 USD/h: H100, aws, on demand, 2026-11-09"] == "$0.19"
    assert offered["2.69 USD/h: H100, runpod-lower, on demand, 2026-11-09"] == "$0.075"


def test_how_fast_another_gpu_would_have_to_be_is_said_for_every_known_price(pair):
    page = text(sections.what_if(review(pair(**H100), provider="aws", currency="USD")))
    assert "The recommended setting takes 40.0 s for 100 images here" in page
    limits = {row[0].split(": ")[1].split(",")[0]: row[1:] for row in rows(page) if len(row) == 2}
    assert "H100" not in limits
    assert limits["A10G"] == [f"{40 * 6.88 / 1.006:.0f} s"]
    assert limits["H200"] == [f"{40 * 6.88 / 3.59:.1f} s"]


def test_a_run_on_a_cpu_is_set_beside_gpus_and_not_beside_a_virtual_cpu(pair):
    page = text(sections.what_if(review(pair(), currency="USD")))
    limits = [row[0] for row in rows(page) if len(row) == 2]
    assert any(": H100," in price for price in limits)
    assert not any("vCPU" in price for price in limits)


def test_prices_of_another_gpu_are_not_set_beside_the_run(pair):
    page = text(sections.what_if(review(pair(**H100), gpu="A100 80GB")))
    assert "USD/h" not in page


# ---- the headline as numbers


def test_the_headline_is_numbers_too(pair):
    found = headline_numbers(review(pair(), **CENT_A_SECOND, monthly_images=100_000))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["unit"], found["currency"]) == ("100 images", "CNY")
    assert (found["cost_today"], found["cost_recommended"]) == pytest.approx((1.0, 0.4))
    assert found["saving"] == pytest.approx(0.6)
    assert found["saving_low"] < 0.6 < found["saving_high"]
    assert (found["within_noise"], found["confirmed"]) == (False, False)
    assert found["recommended"]["batch_size"] == 4
    assert found["quality_today"] is None
    assert found["month"]["today"]["kept_on"] == pytest.approx(2 * 36 * 730)


def test_nothing_measured_gives_no_numbers(on_cpu):
    assert headline_numbers(review(Runs([on_cpu(1, [], status="oom")]), **CENT_A_SECOND)) == {}


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("device", [{}, H100], ids=["cpu", "gpu"])
@pytest.mark.parametrize(
    "traffic", [{}, {"monthly_images": 10_000_000}, {"monthly_images": 9, "peak_hour_images": 9}]
)
def test_every_sentence_of_money_is_filled_in(pair, lang, device, traffic):
    page = review(pair(**device), **traffic, lang=lang)
    said = "\n".join(map(text, (sections.headline(page), sections.month(page))))
    said += text(sections.what_if(page))
    assert "{" not in said
    assert "}" not in said
