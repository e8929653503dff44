"""The article's claims."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qvl_lab.analysis.money.prices import find_price
from qvl_lab.assets import asset
from qvl_lab.claims import article, claim, claims
from qvl_lab.errors import UnknownNameError


def test_the_article_has_a_title_and_a_date():
    assert article().title == "Qwen3-VL多模态开发秘籍:5个技巧提升云端GPU利用率"
    assert article().date == "2026-02-01"


def test_ids_are_unique():
    assert len({found.id for found in claims()}) == len(claims())


@pytest.mark.parametrize("found", claims(), ids=lambda found: found.id)
def test_each_number_stands_in_the_articles_own_words(found):
    quoted = [float(digits) for digits in re.findall(r"\d+(?:\.\d+)?", found.quote)]
    loose = {"out_of_memory": [4.0]}  # of its code: "loss / 4"
    assert set(found.numbers) <= set(quoted + loose.get(found.id, []))


def test_the_split_is_of_the_computation_and_has_the_articles_numbers():
    split = [claim(f"{name}_share") for name in ("image_encoder", "text_encoder", "fusion")]
    assert [found.written for found in split] == ["60–70%", "20–30%", "10–20%"]
    assert {found.unit for found in split} == {"% of computation"}
    assert all("计算量" in found.quote for found in split)


def test_the_packaged_price_of_the_article_is_its_claim():
    per_minute = claim("price_a10g").number
    assert find_price("A10G", "article").per_hour == pytest.approx(60 * per_minute)


@pytest.mark.parametrize("name", ["04_where_the_time_goes", "05_batching_and_caching"])
def test_notebooks_do_not_repeat_or_misquote_the_articles_split(name):
    source = asset(f"notebooks/{name}.ipynb").read_text("utf-8")
    assert not re.search(r"(60-70|20-30|10-20) ?%", source)
    assert "fusion 20" not in source


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md", "docs/findings.md"])
def test_no_page_gives_fusion_or_decoding_the_shares_of_others(name):
    """They once stood a place too far on: fusion had the text encoder's, decoding fusion's."""
    page = (Path(__file__).parents[1] / name).read_text("utf-8")
    assert not re.search(r"(fusion|融合)[^0-9.。;；]{0,12}20[-–]30", page)
    assert not re.search(r"(decod\w+|解码)[^0-9.。;；]{0,12}10[-–]20", page)


def test_an_unknown_claim_names_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'cache_saving'"):
        claim("cache_savings")
