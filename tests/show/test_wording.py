"""Words, written quantities and fonts."""

from __future__ import annotations

import re
import string
import warnings
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

from qvl_lab.assets import asset
from qvl_lab.errors import UnknownNameError
from qvl_lab.show import fonts, locale, quantities, wording
from qvl_lab.tasks import BY_NAME


def placeholders(words: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(words) if name is not None}


def is_chinese(words: str) -> bool:
    return any("一" <= letter <= "鿿" for letter in words)


def test_both_languages_have_the_same_texts():
    assert list(locale.texts("en")) == list(locale.texts("zh"))


@pytest.mark.parametrize("key", locale.texts("en"))
def test_both_languages_of_a_text_have_the_same_placeholders(key):
    english, chinese = (locale.texts(lang)[key] for lang in locale.LANGUAGES)
    assert english.strip() and chinese.strip()
    assert placeholders(english) == placeholders(chinese)


@pytest.mark.parametrize("metric", ["images_per_s", "cost", "ttft_s", "s_per_100_images"])
def test_every_metric_has_a_title_and_an_axis(metric):
    assert {metric, f"{metric}_axis"} <= set(locale.texts("en"))


def test_label_fills_placeholders():
    assert locale.label("batch", "en", n=8) == "batch 8"
    assert locale.label("batch", "zh", n=8) == "批量 8"


def test_label_refuses_unknown_names():
    with pytest.raises(KeyError, match="no_such_text"):
        locale.label("no_such_text", "en")
    with pytest.raises(UnknownNameError, match=r"'fr'.*Allowed: en, zh"):
        locale.label("batch", "fr", n=8)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0, "0"),
        (1234.4, "1,234"),
        (56.72, "56.7"),
        (3.1, "3.10"),
        (0.42, "0.42"),
        (0.0421, "0.042"),
    ],
)
def test_number_keeps_about_three_digits(value, written):
    assert quantities.number(value) == written


def test_money_puts_the_minus_before_the_sign():
    assert quantities.money(3.1, "CNY") == "¥3.10"
    assert quantities.money(-0.42, "USD") == "−$0.42"
    assert quantities.money(12, "AUD") == "AUD 12.0"


@pytest.mark.parametrize(
    ("before", "after", "written"),
    [
        (2, 1, "−50%"),
        (1, 1.5, "+50%"),
        (1, 1, "±0%"),
        (1, 1.004, "+0.4%"),  # not "+0%"
        (1000, 4, "−99.6%"),  # not "−100%"
    ],
)
def test_percent(before, after, written):
    assert quantities.percent(before, after) == written


def test_settings_are_named():
    row = pd.Series({"precision": "fp32", "resolution": "1024", "batch_size": 1})
    assert wording.setting(row, "en") == "fp32 · 1024 px · batch 1"
    row["resolution"] = "native"
    assert wording.setting(row, "zh") == "fp32·原始尺寸·批量 1"
    assert wording.resolution("by_task", "zh") == "按任务"
    assert wording.changed("batch_size", 1, 32, "en") == "batch 1 → 32"
    assert wording.changed("precision", "fp32", "bf16", "zh") == "fp32 → bf16"
    assert (
        wording.changed("cache_implementation", None, "static", "en") == "KV cache default → static"
    )
    assert wording.changed("revision", "a", "b", "en") == "revision a → b"


def test_resolutions_sort_by_size_then_native_then_by_task():
    names = ["by_task", "1024", "native", "256"]
    assert sorted(names, key=wording.resolution_order) == ["256", "1024", "native", "by_task"]


def test_differing_settings_are_told_apart():
    frame = pd.DataFrame(
        {"batch_size": [1, 2], "engine": ["stock", "fast"], "precision": "fp32", "seed": 0}
    )
    assert wording.differing(frame, ["batch_size"]) == ["engine"]
    assert wording.others(frame, ["batch_size"], "en") == ["stock engine", "fast engine"]
    assert wording.others(frame, ["batch_size", "engine"], "en") == ["", ""]


@pytest.mark.parametrize("name", BY_NAME)
def test_known_tasks_have_a_name_in_both_languages(name):
    assert not is_chinese(wording.task(name, "en"))
    assert is_chinese(wording.task(name, "zh"))


def test_tasks_are_named():
    assert wording.task("read_small", "en") == "read, small print"
    assert wording.task("颜色", "en") == wording.task("color", "en") == "colour"
    assert wording.task(" Total ", "zh") == "收据合计"
    assert wording.task("My task", "zh") == "My task"


def test_items_are_a_number_or_a_range():
    assert wording.items(pd.Series([60, 60]), "en") == "60 items"
    assert wording.items(pd.Series([57.0, 60.0]), "zh") == "57–60 题"
    assert wording.items(pd.Series([1]), "en") == "1 item"


def test_quality_is_called_what_it_is():
    def axis(*kinds):
        scored = [kind is not None for kind in kinds]
        frame = pd.DataFrame({"quality": scored, "quality_kind": kinds})
        frame["quality"] = frame["quality"].where(frame["quality"])
        return wording.quality_axis(frame, "en"), wording.quality_axis(frame, "en", loss=True)

    score = ("mean score (0–1)", "change in mean score (percentage points)")
    assert axis("answers", None) == axis("answers", "answers") == score
    assert axis("agreement")[1] == "change in agreement (percentage points)"
    assert axis("answers", "agreement")[0] == axis(None)[0] == "quality (0–1)"


def test_memory_is_called_what_it_is():
    def axis(reserved, process):
        peaks = {"peak_reserved_bytes": reserved, "peak_process_bytes": process}
        return wording.axis(pd.DataFrame(peaks), "vram", "en")

    assert axis([1.0, 2.0], [5.0, 5.0]) == "peak VRAM (GiB)"
    assert axis([None, None], [5.0, 5.0]) == "peak process memory (GiB)"
    assert axis([1.0, None], [5.0, 5.0]) == "peak memory, VRAM or process (GiB)"


# ---- fonts


@pytest.fixture
def bare_machine(monkeypatch) -> pytest.MonkeyPatch:
    """A machine on which matplotlib knows only the fonts that it brings along."""
    own = [font for font in font_manager.fontManager.ttflist if "mpl-data" in font.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    fonts.chinese_families.cache_clear()
    yield monkeypatch
    fonts.chinese_families.cache_clear()


def glyphs() -> set[str]:
    path = asset("fonts/QVLSansSC-Regular.otf")
    return set(map(chr, FT2Font(str(path)).get_charmap()))


def test_chinese_is_drawn_where_no_font_is_installed(bare_machine):
    assert fonts.families("zh") == ["QVL Sans SC", "DejaVu Sans"]
    with warnings.catch_warnings(), fonts.style("zh"):
        warnings.simplefilter("error")
        figure = plt.figure()
        figure.text(0.5, 0.5, "每 100 张图 ¥0.35，−34%")
        figure.canvas.draw()
    found = font_manager.findfont("QVL Sans SC", fallback_to_default=False)
    assert Path(found) == asset("fonts/QVLSansSC-Regular.otf")


def test_an_installed_font_helps_out_with_characters_that_the_packaged_one_lacks(bare_machine):
    installed = SimpleNamespace(name="WenQuanYi Micro Hei")
    known = [*font_manager.fontManager.ttflist, installed]
    bare_machine.setattr(font_manager.fontManager, "ttflist", known)
    assert fonts.families("zh") == ["QVL Sans SC", "WenQuanYi Micro Hei", "DejaVu Sans"]
    assert fonts.families("en")[0] == "DejaVu Sans"


def test_english_figures_can_draw_chinese_names_of_tasks(bare_machine):
    assert fonts.families("en") == ["DejaVu Sans", "QVL Sans SC"]


def test_the_packaged_font_has_every_hanzi_of_gb2312_and_every_character_of_the_texts():
    rows, cells = range(0xB0, 0xF8), range(0xA1, 0xFF)
    pairs = (bytes((row, cell)).decode("gb2312", "ignore") for row in rows for cell in cells)
    hanzi = set("".join(pairs))
    assert len(hanzi) == 6763
    said = {letter for words in locale.texts("zh").values() for letter in words}
    assert hanzi | said - {"\n"} <= glyphs()


def test_the_packaged_font_has_its_licence_beside_it():
    words = asset("fonts/OFL.txt").read_text("utf-8")
    assert "SIL OPEN FONT LICENSE Version 1.1" in words and "Copyright 2014-2021 Adobe" in words


def test_a_sweep_of_eight_resolutions_has_a_colour_for_each():
    assert len(set(fonts.PALETTE)) == len(fonts.PALETTE) >= 8


def test_unknown_language():
    with pytest.raises(UnknownNameError, match="Allowed: en, zh"):
        locale.check_language("fr")


def test_style_is_undone_after_the_block():
    before = matplotlib.rcParams["font.family"]
    with fonts.style("en"):
        assert matplotlib.rcParams["font.family"] == fonts.families("en")
        assert matplotlib.rcParams["figure.constrained_layout.use"]
    assert matplotlib.rcParams["font.family"] == before


def test_what_an_engine_does_not_look_at_is_not_said():
    frame = pd.DataFrame(
        {
            "engine": ["stock", "stock", "fast", "fast"],
            "cache_implementation": [None, "static", None, None],
            "prefill_chunk": [8192, 4096, 8192, 32768],
            "packing": [False, True, True, True],  # differs between engines alone
        }
    )
    assert wording.differing(frame, ["engine"]) == ["cache_implementation", "prefill_chunk"]
    assert wording.others(frame, ["engine"], "en") == [
        *("", "KV cache static"),
        *("prefill chunk 8192", "prefill chunk 32768"),
    ]


def test_what_is_switched_off_is_said_and_what_is_on_as_ever_is_not():
    frame = pd.DataFrame(
        {"engine": "fast", "packing": [True, False], "prefix_cache": [True, False]}
    )
    assert wording.others(frame, [], "en") == ["prefix cache", "without packing"]
    assert wording.others(frame, [], "zh") == ["前缀缓存", "不用打包"]
    both = frame.assign(overlap=[True, False])
    assert wording.others(both, [], "en")[1] == "without packing, overlap"
    assert wording.others(both, [], "zh")[1] == "不用打包、重叠执行"


CHINESE = "\u3000-\u303f\u4e00-\u9fff\uff00-\uffef"


@pytest.mark.parametrize("key", locale.texts("zh"))
def test_chinese_texts_have_full_width_marks_and_no_stray_spaces(key):
    words = re.sub(r"qvl-lab [a-z-]+|--[a-z_]+( [a-zA-Z_=1]+)?", "", locale.texts("zh")[key])
    assert not re.search(rf"[{CHINESE}] [{CHINESE}]", words)
    assert not re.search(r"[，。；：（）] | [，。；：（）]", words)
    if re.search("[\u4e00-\u9fff]", words):
        assert not re.search(rf"[{CHINESE}}}][,;()]|[,;()][{CHINESE}{{]", words)
    assert "原文" not in words


def test_a_value_that_ends_in_chinese_leaves_no_stray_space():
    values = {"today": "¥1.00", "best": "¥0.40", "percent": "60%", "low": "50%", "high": "70%"}
    said = locale.label("headline", "zh", unit="100 张图", setting="fp32·按任务·快速引擎", **values)
    assert "快速引擎后为" in said
    assert "改用 fp32" in said
