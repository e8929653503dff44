"""What caches save by hit rate, on costs that lie along known lines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from qvl_lab.analysis.frame import frame
from qvl_lab.analysis.levers.cache_savings import break_even, cache_columns, cache_of, hit_points
from qvl_lab.analysis.money.cost import price
from qvl_lab.errors import ConfigError
from qvl_lab.models.load import read_architecture

RATES = (0.0, 0.3, 0.6, 0.9)
COLUMN = "cost_cny_per_100_images"


def synthetic(
    lines: dict[str, tuple[float, float]], rates: Any = RATES, **columns: Any
) -> pd.DataFrame:
    """Rows whose costs are exactly ``base - slope * rate``; "off" has no hits."""
    fields = {
        "off": {},
        "features": {"encoder_cache_gib": 1.0},
        "prefix": {"prefix_cache": True},
        "features+prefix": {"encoder_cache_gib": 1.0, "prefix_cache": True},
        "answers": {"response_cache_entries": 10},
    }
    rows = [
        {
            **{"encoder_cache_gib": None, "prefix_cache": False, "response_cache_entries": 0},
            **{"status": "ok", "engine": "fast", "environment": "e", "model": "tiny"},
            **{"precision": "bf16", "resolution": "512", "batch_size": 8, "max_new_tokens": 16},
            **{"min_new_tokens": None, "plan": "p", "env_gpu": "NVIDIA A10G"},
            **{"encoder_bytes_per_image": 6e6, "prefix_bytes_per_image": 24e6},
            **{"response_bytes_per_image": 1e3, "workload_fingerprint": str(rate)},
            **{"image_hit_rate": 0.0 if cache == "off" else rate},
            **{COLUMN: base - slope * rate, f"{COLUMN}_low": None, f"{COLUMN}_high": None},
            "s_per_100_images": 100 * (base - slope * rate),
            **fields[cache],
            **columns,
        }
        for rate in rates
        for cache, (base, slope) in lines.items()
    ]
    return pd.DataFrame(rows)


def one(table: pd.DataFrame, cache: str = "features") -> pd.Series:
    return table.set_index("cache").loc[cache]


@pytest.fixture
def cached(make_run, make_repeat) -> Callable[..., Any]:
    """A run of the fast engine over ten requests, of which ``seen`` had their image looked at."""

    def make(seen: int = 10, wall_s: float = 10.0, caches: Any = None, **parts: Any) -> Any:
        repeat = make_repeat(wall_s, work={"images": seen}, caches=caches or {})
        known = {"engine": "fast", "architecture": read_architecture("tiny").to_dict()}
        known |= {"resolved": {"device": "cpu", "precision": "fp32"}}
        return make_run([repeat] * 2, **(known | parts))

    return make


# ---- what a row says


def test_the_hit_rate_is_the_share_of_requests_whose_image_was_not_seen(cached):
    assert cache_columns(cached(10))["image_hit_rate"] == 0
    assert cache_columns(cached(3))["image_hit_rate"] == pytest.approx(0.7)
    assert cache_columns(cached(12))["image_hit_rate"] == 0  # some were seen twice


def test_an_older_run_does_not_tell(make_run, make_repeat):
    row = cache_columns(make_run([make_repeat()]))
    assert set(row.values()) == {None}


def test_bytes_of_features_are_measured(cached):
    row = cache_columns(cached(4, caches={"encoder_bytes": 1000, "encoder_hits": 6}))
    assert row["encoder_bytes_per_image"] == 250
    assert row["prefix_bytes_per_image"] is None
    assert row["response_bytes_per_image"] is None


def test_bytes_of_a_prefix_are_whole_blocks_of_keys_and_values(cached):
    sizes = read_architecture("tiny")
    row = cache_columns(
        cached(4, caches={"prefix_hits": 6, "prefix_misses": 4, "prefix_tokens_saved": 6 * 66})
    )
    values = 2 * sizes.layers * sizes.kv_heads * sizes.head_dim
    assert row["prefix_bytes_per_image"] == 80 * values * 4  # 5 blocks of 16 tokens, fp32
    known = {"caches": {"prefix_hits": 6, "prefix_tokens_saved": 1}, "architecture": {"other": 1}}
    assert cache_columns(cached(4, **known))["prefix_bytes_per_image"] is None


def test_bytes_of_an_answer_grow_with_its_tokens(cached):
    row = cache_columns(cached(4, caches={"response_hits": 6, "response_misses": 4}))
    assert row["response_bytes_per_image"] == 512 + 16 * 5  # five tokens each


def test_a_frame_names_its_caches_and_prices_them(cached):
    runs = [
        cached(10, workload={"fingerprint": "w"}),
        cached(4, 5.0, {"encoder_bytes": 99}, encoder_cache_gib=1.0, workload={"fingerprint": "w"}),
        cached(2, 4.0, prefix_cache=True, encoder_cache_gib=1.0, workload={"fingerprint": "w"}),
        cached(2, 3.0, response_cache_entries=5, workload={"fingerprint": "w"}),
        cached(2, 9.0, engine="stock", workload={"fingerprint": "w"}),
    ]
    table = price(frame(runs), per_hour=36.0)
    names = [cache_of(row) for _, row in table.iterrows()]
    assert names == ["off", "features", "features+prefix", "answers", "off"]
    points = hit_points(table)
    assert list(points["cache"]) == ["off", "features", "features+prefix", "answers"]
    assert list(points["hit_rate"]) == [0, 0.6, 0.8, 0.8]
    assert list(points["cost"]) == pytest.approx([1.0, 0.5, 0.4, 0.3])
    assert list(points["saving"]) == pytest.approx([0, 0.5, 0.6, 0.7])


def test_a_cache_is_compared_with_none_on_the_same_requests():
    table = synthetic({"off": (1.0, -0.5), "features": (1.0, 0.5)})  # harder at higher rates
    points = hit_points(table).query("cache == 'features'")
    expected = [1 - (1 - 0.5 * h) / (1 + 0.5 * h) for h in RATES]
    assert list(points["saving"]) == pytest.approx(expected)
    other = hit_points(table[(table["image_hit_rate"] > 0) | (table.index < 2)])
    assert other["saving"].isna().sum() == 3


@pytest.mark.parametrize("name", ["batch_size", "precision", "environment"])
def test_rows_that_differ_in_more_are_refused(name):
    table = synthetic({"off": (1.0, 0.0), "features": (1.0, 0.5)})
    table[name] = table[name].astype(object)
    table.loc[1, name] = 99
    with pytest.raises(ConfigError, match=f"one {name}, and the frame has .*99; choose one"):
        hit_points(table)


@pytest.mark.parametrize(
    "columns", [{"status": "oom"}, {"engine": "stock"}, {"image_hit_rate": None}]
)
def test_a_frame_without_a_measured_row_says_what_to_do(columns):
    with pytest.raises(ConfigError, match="measure with 'qvl-lab hit-rates'"):
        hit_points(synthetic({"off": (1.0, 0.0)}, **columns))


# ---- from where a cache pays


def test_a_cache_pays_where_its_memorys_share_is_made_up_for():
    """Of 24 GB, 100 images of 6 MB are 2.5%, 100 prefixes of 24 MB 10%."""
    lines = {"off": (2.0, 0.0), "features": (2.0, 0.5), "prefix": (2.0, 1.0)}
    lines |= {"features+prefix": (2.0, 1.2), "answers": (2.0, 2.0)}
    table = break_even(synthetic(lines), column=COLUMN)
    assert list(table["cache"]) == ["features", "prefix", "features+prefix", "answers"]
    assert list(table["base"]) == pytest.approx([2.0] * 4)
    assert list(table["slope"]) == pytest.approx([0.5, 1.0, 1.2, 2.0])
    assert list(table["memory_share"]) == pytest.approx([0.025, 0.1, 0.125, 1e5 / 24e9])
    assert list(table["memory_cost"]) == pytest.approx([0.05, 0.2, 0.25, 2e5 / 24e9])
    for share, slope, found in table[["memory_share", "slope", "break_even"]].to_numpy():
        assert (1 + share) * (2 - slope * found) == pytest.approx(2.0)
    exact = table[["break_even", "break_even_low", "break_even_high"]].to_numpy()
    assert exact[:, 1] == pytest.approx(exact[:, 0]) and exact[:, 2] == pytest.approx(exact[:, 0])
    assert table.attrs["reference"] == pytest.approx(2.0)
    assert list(table["highest_saving"]) == pytest.approx([0.225, 0.45, 0.54, 0.9])


def test_more_images_held_cost_more_memory():
    table = synthetic({"off": (2.0, 0.0), "prefix": (2.0, 1.0)})
    few, many = (one(break_even(table, images=n), "prefix") for n in (100, 500))
    assert few["held_bytes"] == 2.4e9 and many["held_bytes"] == 12e9
    assert few["break_even"] == pytest.approx(2 - 2 / 1.1)
    assert many["break_even"] == pytest.approx(2 - 2 / 1.5)


def test_a_cache_whose_memory_costs_more_than_hits_save_never_pays():
    table = synthetic({"off": (2.0, 0.0), "prefix": (2.0, 0.1)})
    row = one(break_even(table), "prefix")
    assert pd.isna(row[["break_even", "break_even_low", "break_even_high"]]).all()
    assert one(break_even(table, images=10), "prefix")["break_even"] == pytest.approx(
        20 - 20 / 1.01
    )


def test_a_cache_that_is_cheaper_without_hits_pays_from_the_first():
    row = one(break_even(synthetic({"off": (2.0, 0.0), "features": (1.9, 0.5)})))
    assert row["break_even"] == 0


def test_the_claim_is_reached_within_what_was_measured_or_not_at_all():
    lines = {"off": (2.0, 0.0), "features": (2.0, 0.8), "prefix": (2.0, 1.6)}
    table = break_even(synthetic(lines))
    assert pd.isna(one(table)["claim_from"])  # it would be at a hit rate of 1
    assert one(table, "prefix")["claim_from"] == pytest.approx(0.5)
    assert one(break_even(synthetic(lines), claim=0.2))["claim_from"] == pytest.approx(0.5)


def test_the_card_is_the_priced_one_or_else_the_measured_one_or_said():
    table = synthetic({"off": (2.0, 0.0), "features": (2.0, 0.5)})
    assert one(break_even(table))["memory_share"] == pytest.approx(0.025)  # A10G: 24 GB
    table.attrs["price"] = {"gpu": "L40S"}
    assert one(break_even(table))["memory_share"] == pytest.approx(0.0125)
    assert one(break_even(table, memory_gb=6))["memory_share"] == pytest.approx(0.1)
    unknown = break_even(synthetic({"off": (2.0, 0.0), "features": (2.0, 0.5)}, env_gpu=None))
    assert pd.isna(one(unknown)[["memory_share", "memory_cost", "break_even"]]).all()
    assert one(unknown)["held_bytes"] == 6e8


def test_the_price_of_memory_can_be_said():
    """0.02 a second is 72 an hour; 600 MB at 7.2 an hour and GiB are a tenth of that."""
    table = synthetic({"off": (2.0, 0.0), "features": (2.0, 0.5)})
    table["s_per_100_images"] = 50 * table[COLUMN]
    table.attrs["cost_per_hour"] = 72.0
    row = one(break_even(table, per_gib_hour=7.2))
    assert row["memory_share"] == pytest.approx(0.1 * 6e8 / 2**30)
    with pytest.raises(ConfigError, match="needs a priced frame"):
        table = table.assign(s_per_100_images_low=None, s_per_100_images_high=None)
        table.attrs.clear()
        break_even(table, column="s_per_100_images", per_gib_hour=7.2)


def test_the_scatter_of_costs_without_a_cache_widens_the_interval():
    rng = np.random.default_rng(4)
    lines = {"off": (2.0, 0.0), "features": (2.0, 1.0)}
    calm = synthetic(lines, rates=np.linspace(0, 0.9, 10))
    calm[COLUMN] += np.where(calm["encoder_cache_gib"].isna(), 0, rng.normal(0, 0.02, 20))
    shaky = calm.copy()
    shaky[COLUMN] += np.where(calm["encoder_cache_gib"].isna(), rng.normal(0, 0.1, 20), 0)
    widths = []
    for table in (calm, shaky):
        found = break_even(table)
        row = one(found)
        widths.append(row["claim_from_high"] - row["claim_from_low"])
        assert found.attrs["reference_low"] <= found.attrs["reference"]
    assert widths[0] < widths[1]


def test_without_uncached_rows_there_is_nothing_to_compare_with():
    with pytest.raises(ConfigError, match="measure 'off' too"):
        break_even(synthetic({"features": (2.0, 1.0)}))


def test_a_single_hit_rate_gives_no_line():
    row = one(break_even(synthetic({"off": (2.0, 0.0), "features": (2.0, 1.0)}, rates=[0.5])))
    assert row["highest_saving"] == pytest.approx(0.25)
    assert pd.isna(row[["base", "slope", "break_even", "claim_from"]]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 0}, "images must be a number above 0, not 0"),
        ({"memory_gb": -1.0}, "memory_gb must be a number above 0"),
        ({"per_gib_hour": float("inf")}, "per_gib_hour must be a number above 0"),
        ({"claim": 1.0}, "claim must be a share from 0 to 1, not 1.0"),
    ],
)
def test_numbers_out_of_bounds_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        break_even(synthetic({"off": (2.0, 0.0), "features": (2.0, 1.0)}), **options)
