"""Recompute the figures of README, reports/README and docs/findings from the committed run files.

``python reports/figures.py`` (``make figures-check``) prints each row and phrase with the figures
that the files give now, and whether its page says the same; it exits with 1 if one does not.

A page is whole when each of its figures is in one of these phrases, or below the words "No run file
is committed", which hold to the next heading: :func:`unchecked` lists the others.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

import qvl_lab as ql
from qvl_lab.analysis.levers.cache_savings import break_even
from qvl_lab.analysis.limits.roofline import measured_ceilings, roofline
from qvl_lab.claims import claim

REPORTS = Path(__file__).parent
ROOT = REPORTS.parent
NO_FILE = "No run file is committed"
#: What was measured before there were run files, quoted in reports/README.
EARLIER = {("fp32", 1): (644, 45.7), ("bf16", 1): (513, 39.5), ("bf16", 8): (85, 48.5)}
EARLIER |= {("bf16", 32): (24.6, 42.5)}
#: What has a number and is no measurement.
NO_MEASUREMENT = ("torch 2.11", "transformers 5.17", "Python 3.11 to 3.13", "Python 3.11 至 3.13")
NO_MEASUREMENT += ("Apache-2.0", "95% intervals")
#: Measurements of others, which the page says to have no run file.
QUOTED = ("0.82 and 0.48 on pictures of an outside audit near to and far from it (no run file",)
QUOTED += ("与训练相近的得 0.82， 相差较远的得 0.48（没有运行文件",)
#: From other figures of the page; tests/show/report/test_how_sure.py recomputes it.
QUOTED += ("11–37% between hosts and 5–19% between days",)


@cache
def runs(name: str) -> ql.Runs:
    return ql.Runs.load(REPORTS / f"{name}.jsonl")


@cache
def frame(name: str) -> pd.DataFrame:
    return ql.price(runs(name).frame(), gpu="H200", provider="runpod", currency="CNY")


def row(name: str, **wanted: Any) -> pd.Series:
    """The first row with these settings."""
    found = frame(name)
    for column, value in wanted.items():
        found = found[found[column].map(str) == str(value)]
    return found.iloc[0]


def step_ms(at: pd.Series) -> float:
    """Milliseconds of a decoding step; a batch takes one less than it has new tokens."""
    steps = at["max_new_tokens"] - 1
    return float(1e3 * at["stage_decode_s"] * at["batch_size"] / steps)


def span(values: Iterable[float], digits: int = 0, between: str = " to ") -> str:
    """The least and the most of some numbers."""
    known = sorted(values)
    return f"{known[0]:.{digits}f}{between}{known[-1]:.{digits}f}"


def passes(name: str, **wanted: Any) -> list[float]:
    """Seconds per 100 images of each pass of a setting."""
    key = row(name, **wanted)["key"]
    run = next(run for run in runs(name) if run.key == key)
    return [100 * repeat.wall_s / repeat.answered for repeat in run.repeats]


def ceilings(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((REPORTS / f"{name}.ceilings.json").read_text("utf-8"))
    return found


def least(name: str, number: int = 0) -> pd.DataFrame:
    """The roofline of a run of a file."""
    limits = measured_ceilings(ceilings(name.removesuffix("-2048")), "bf16")
    return roofline(runs(name)[number], limits)


W1 = "h200-fast/w1"
STOCK, FAST = {"engine": "stock", "precision": "bf16"}, {"engine": "fast", "batch_size": 96}


def engine_at_32() -> float:
    """How much faster the fast engine is than stock, both with 32 at once."""
    stock = row("h200-fast/ablation", engine="stock", batch_size=32)
    levers = ("packing", "overlap", "cuda_graphs", "fused_kernels")
    fast = row("h200-fast/ablation", engine="fast", batch_size=32, **dict.fromkeys(levers, True))
    return float(stock["s_per_100_images"] / fast["s_per_100_images"])


def right(precision: str) -> list[float]:
    """The scores of all 420 questions of the evaluation set, with ``tiny``."""
    scores = row("h200-fast/fp8-quality", precision=precision)["scores"]
    return [score for values in scores.values() for score in values]


def readme(chinese: bool = False) -> Iterator[str]:
    names = ["transformers, one by one, bf16", "transformers, batch 32, bf16"]
    names += ["fast engine, 96 at once, bf16", "fast engine, 96 at once, fp8"]
    brackets = " ({}-{})"
    if chinese:
        names = ["transformers，逐张，bf16", "transformers，批量 32，bf16"]
        names += ["fast 引擎，96 张同时，bf16", "fast 引擎，96 张同时，fp8"]
        brackets = "（{}-{}）"
    rows = [row(W1, batch_size=1, **STOCK), row(W1, batch_size=32, **STOCK)]
    rows += [row(W1, precision=precision, **FAST) for precision in ("bf16", "fp8")]
    for name, at, digits in zip(names, rows, (0, 1, 2, 2), strict=True):
        s, low, high = (at[f"s_per_100_images{end}"] for end in ("", "_low", "_high"))
        seconds = f"{s:.{digits}f}"
        if pd.notna(low):
            seconds += brackets.format(f"{low:.2f}", f"{high:.2f}")
        cost = at["cost_cny_per_100_images"]
        written = f"{cost:.2f}" if digits == 0 else f"{cost:.3f}" if digits == 1 else f"{cost:.4f}"
        yield f"| {name} | {seconds} | {written} |"
    stock, fast = (at["s_per_100_images"] for at in rows[1:3])
    times, engine = f"{stock / fast:.1f}", f"{engine_at_32():.1f}"
    quoted, rate = frame(W1).attrs["price"], frame(W1).attrs["rate"]
    hour, per = f"{quoted['per_hour']:g}", f"{rate['rate']:g}"
    if chinese:
        yield f"从 {stock:.1f} 秒到 {fast:.2f} 秒是 {times} 倍，其中引擎本身只占 {engine} 倍"
        yield f"评测集由同一生成器绘制，得 {fmean(right('bf16')):.2f}"
        yield f"{hour} 美元"
        yield f"1 美元 = {per} 元"
    else:
        yield f"From {stock:.1f} s to {fast:.2f} s is {times} times"
        yield f"of which the engine is {engine}"
        yield f"{fmean(right('bf16')):.2f} on the evaluation set"
        yield f"{hour} USD an hour"
        yield f"{per} CNY per USD"


def findings() -> Iterator[str]:
    table = {}
    for name, batch, precision in (
        ("one by one", 1, "fp32"),
        ("one by one", 1, "bf16"),
        ("batch 32", 32, "fp32"),
        ("batch 32", 32, "bf16"),
    ):
        at = row("h200-8b/runs", batch_size=batch, precision=precision, resolution=1024)
        table[batch, precision] = s = at["s_per_100_images"]
        digits = 0 if batch == 1 else 1
        low, high = (f"{at[f's_per_100_images_{end}']:.{digits}f}" for end in ("low", "high"))
        first = at["batch_ttft_s"]
        yield (
            f"| {name}, {precision} | {s:.{digits}f} ({low}-{high}) "
            f"| {at['cost_cny_per_100_images']:.2f} | {first:.{2 if first < 1 else 1}f} s "
            f"| {at['peak_reserved_bytes'] / 2**30:.1f} GiB |"
        )
    uniform = frame("h200-8b/runs")
    advice = ql.recommend(
        uniform[uniform["resolution"] == "1024"],
        current={"batch_size": 1, "precision": "fp32"},
        hold=(),  # what lower precision loses is not known of random weights: this is speed alone
    )
    saved = advice.saving
    article = 1 - claim("optimised_cost").number / claim("serial_cost").number
    yield (
        f"saves {saved.value:.0%} ({100 * saved.low:.0f}-{saved.high:.0%}) against serial fp32: "
        f"more than the article's {article:.0%}"
    )
    batching = table[1, "fp32"] / table[32, "fp32"]
    precise = table[32, "fp32"] / table[32, "bf16"]
    yield f"{batching:.1f} times cheaper, bf16 on top of that {precise:.1f} times"
    quoted, rate = uniform.attrs["price"], uniform.attrs["rate"]
    yield f"{quoted['per_hour']:g} USD/h"
    yield f"{rate['rate']:g} CNY per USD"
    said = {n: claim(f"{n}_share").numbers for n in ("image_encoder", "text_encoder", "fusion")}
    written = {name: "-".join(f"{number:g}" for number in found) for name, found in said.items()}
    yield f"image encoder {written['image_encoder']}%, text encoder {written['text_encoder']}%"
    yield f"multimodal fusion {written['fusion']}%"
    yield from shares()


SPLIT = {"2b": ("2b",), "4b": ("4b", "4b-2048"), "8b": ("8b", "8b-2048")}


def split(model: str) -> list[tuple[str, int, pd.Series]]:
    """File, place and row of each size of a model, from the smallest."""
    found = [
        (f"h200-split/{name}", number, at)
        for name in SPLIT[model]
        for number, (_, at) in enumerate(frame(f"h200-split/{name}").iterrows())
    ]
    return sorted(found, key=lambda one: int(one[2]["resolution"]))


def shares() -> Iterator[str]:
    encoder, mergers, steps, ideal = {}, [], [], []
    for model in SPLIT:
        for name, number, at in split(model):
            total = at["s_per_100_images"] / 100
            parts = {n: 100 * at[f"stage_{n}_s"] / total for n in ("vision", "prefill", "decode")}
            merger = 100 * at["part_vision_merger_s"] / total
            rest = 100 - sum(parts.values())
            yield (
                f"| {model.upper()}, {at['resolution']} px | {parts['vision']:.1f} | {merger:.2f} "
                f"| {parts['prefill']:.1f} | {parts['decode']:.1f} | {rest:.1f} |"
            )
            both = parts["vision"] + parts["prefill"]
            encoder[model, at["resolution"]] = 100 * parts["vision"] / both
            mergers.append(100 * merger / parts["vision"])
            steps.append(step_ms(at))
            table = least(name, number)
            count = runs(name)[number].repeats[0].work["decode_steps"]
            ideal.append(1e3 * table.loc["decode", "least_s"] / count)
    yield f"{span(steps)} ms each on these hosts"
    yield f"memory bandwidth would allow {span(ideal, 1)}"
    most = encoder.pop(("2b", "2048"))
    yield f"the encoder takes {span(encoder.values(), between='-')}%, and {most:.0f}% only for 2B"
    yield f"the mergers are {span(mergers, between='-')}% of it"
    first, second = (step_ms(split("8b")[size][2]) for size in (2, 3))
    yield f"where a step of 8B took {second:.0f} ms instead of {first:.0f}"


def reports() -> Iterator[str]:
    yield from earlier()
    yield from machines()
    yield from apart()
    yield from split_notes()
    yield from engines()
    yield from sizes()
    yield from levers()


def apart() -> Iterator[str]:
    """Equal settings on another host and on another day."""
    others = {"host": "h200-8b/second-machine", "day": "h200-fast/w1"}
    for what, precision, resolution, batch in (
        ("host", "fp32", 256, 1),
        ("host", "fp32", 256, 8),
        ("day", "bf16", 1024, 1),
        ("day", "bf16", 1024, 32),
    ):
        setting = {"precision": precision, "resolution": resolution, "batch_size": batch}
        names = ("h200-8b/runs", others[what])
        first, again = (row(name, **setting, engine="stock") for name in names)
        seconds = [at["s_per_100_images"] for at in (first, again)]
        digits = 0 if batch == 1 else 1
        written = " | ".join(f"{s:.{digits}f}" for s in seconds)
        size = "one by one" if batch == 1 else f"batch {batch}"
        yield (
            f"| {precision}, {resolution} px, {size} | {written} "
            f"| {seconds[1] / seconds[0] - 1:.0%} | {what}"
        )


def earlier() -> Iterator[str]:
    rows = {
        (precision, batch): row(
            "h200-8b/runs", precision=precision, batch_size=batch, resolution=1024
        )
        for precision, batch in EARLIER
    }
    for (precision, batch), (seconds, ms) in EARLIER.items():
        at = rows[precision, batch]
        name = "one by one" if batch == 1 else f"batch {batch}"
        s = at["s_per_100_images"]
        written = f"{s:.0f}" if batch == 1 else f"{s:.1f}"
        yield f"| {name}, {precision} | {seconds:g} | {written} | {ms} | {step_ms(at):.1f} |"
    most = rows["bf16", 32]
    gib = {key: at["peak_allocated_bytes"] / 2**30 for key, at in rows.items()}
    yield (
        f"the vision encoder takes {1e3 * most['stage_vision_s']:.1f} ms (earlier 19.5) and "
        f"prefill {1e3 * most['stage_prefill_s']:.1f} ms (earlier 34); allocated memory peaks at "
        f"{gib['bf16', 32]:.1f} GiB (earlier 26.5), in fp32 one by one at "
        f"{gib['fp32', 1]:.1f} (33.5)"
    )
    bf16 = [at for _, at in frame("h200-8b/runs").iterrows() if at["precision"] == "bf16"]
    earlier_ms = [ms for (precision, _), (_, ms) in EARLIER.items() if precision == "bf16"]
    yield (
        f"in bf16 its step takes {span(map(step_ms, bf16))} ms at any batch size where it took "
        f"{span(earlier_ms)}"
    )
    yield f"preprocessing of a JPEG takes {images_ms(most):.0f} ms"


def images_ms(at: pd.Series) -> float:
    """What an image takes on the CPU before the model, in milliseconds."""
    return float(1e3 * (at["stage_decode_image_s"] + at["stage_preprocess_s"]))


def machines() -> Iterator[str]:
    fp32 = {"precision": "fp32", "resolution": 256}
    there, here = (
        [row(f"h200-8b/{name}", batch_size=b, **fp32)["s_per_100_images"] for b in (1, 8)]
        for name in ("second-machine", "runs")
    )
    more = [f"{100 * (a / b - 1):.0f}%" for a, b in zip(there, here, strict=True)]
    yield (
        f"fp32 at 256 px took {there[0]:.0f} s per 100 images one by one and {there[1]:.1f} s at "
        f"batch 8 there, against {here[0]:.0f} s and {here[1]:.1f} s on the first, {more[0]} and "
        f"{more[1]} more"
    )
    fp16, bf16 = (
        row("h200-8b/runs", precision=precision, batch_size=32, resolution=1024)
        for precision in ("fp16", "bf16")
    )
    yield f"({fp16['s_per_100_images']:.1f} s against {bf16['s_per_100_images']:.1f} s)"
    apart = max(abs(fp16[name] / bf16[name] - 1) for name in ("stage_vision_s", "stage_prefill_s"))
    yield f"its vision and prefill times agree with bf16's to {math.ceil(100 * apart)}%"
    limited = frame("h200-8b-24gib/runs")
    limited = limited[limited["status"] == "ok"]
    taken = [images_ms(at) for _, at in limited.iterrows()]
    yield f"takes {span(taken)} ms an image instead of {images_ms(bf16):.0f}"


def split_notes() -> Iterator[str]:
    at = split("8b")[3][2]
    total = at["s_per_100_images"] / 100
    yield f"vision 0.146 there, {at['stage_vision_s']:.3f} here"
    yield f"prefill 0.127 and {at['stage_prefill_s']:.3f}"
    yield f"a decoding step 43.8 ms there, {step_ms(at):.1f} here"
    yield f"decoding's share of 66.1% there, {100 * at['stage_decode_s'] / total:.1f}% here"
    yield f"the encoder's of 13.9% and {100 * at['stage_vision_s'] / total:.1f}%"
    rate = ceilings("h200-split/8b")["flops_per_s"]["bf16"]
    yield f"{rate / 1e12:.0f} TFLOP/s in bf16"
    tables = [least(name, number) for model in SPLIT for name, number, _ in split(model)]
    mergers = [table.loc["vision/merger"] for table in tables]
    reached = max(merger["flops"] / merger["seconds"] / rate for merger in mergers)
    yield f"pass it by up to {100 * (reached - 1):.0f}%"
    steps = {model: [step_ms(one) for *_, one in split(model)] for model in SPLIT}
    yield (
        f"{span(steps['2b'], 1, '-')} ms a step for 2B, {span(steps['4b'][:3], 1, '-')} for 4B, "
        f"{span(steps['8b'][:3], 1, '-')} for 8B on the first machine; {steps['4b'][3]:.1f} for 4B "
        f"and {steps['8b'][3]:.1f} for 8B at 2048 px on the second"
    )


def engines() -> Iterator[str]:
    fast = {precision: row(W1, precision=precision, **FAST) for precision in ("bf16", "fp8")}
    static = row(W1, cache_implementation="static")
    rows = {
        "stock, one by one, bf16": (row(W1, batch_size=1, **STOCK), "1, over 4 images"),
        "stock, batch 32, bf16": (row(W1, batch_size=32, **STOCK), "1"),
        "stock, batch 32, static cache, bf16": (static, "1"),
        "fast, 96 at once, bf16": (fast["bf16"], "3"),
        "fast, 96 at once, fp8": (fast["fp8"], "3"),
    }
    for name, (at, count) in rows.items():
        seconds = f"{at['s_per_100_images']:.{2 if at['engine'] == 'fast' else 1}f}"
        if at["engine"] == "fast":
            seconds += f" ({span(passes(W1, precision=at['precision'], **FAST), 2)})"
        yield f"| {name} | {seconds} | {count} | {at['gpu_utilisation']:.0%} |"
    pass_s = {name: 0.96 * at["s_per_100_images"] for name, at in fast.items()}
    yield (
        f"took {fast['bf16']['warmup_s']:.1f} s, {pass_s['bf16']:.1f} s of them the pass, loading "
        f"{fast['bf16']['load_s']:.1f} s; the next engine of the same process, in fp8, "
        f"{fast['fp8']['warmup_s']:.1f} s, {pass_s['fp8']:.1f} s of them the pass"
    )
    limits = ceilings(W1)
    yield (
        f"({limits['flops_per_s']['bf16'] / 1e12:.0f} TFLOP/s, "
        f"{limits['bytes_per_s'] / 1e12:.2f} TB/s; `w1.ceilings.json`)"
    )
    table = least(W1)
    for stage, name in (
        ("vision", "vision encoder"),
        ("prefill", "prefill"),
        ("decode", "decoding"),
    ):
        yield f"| {name} | {table.loc[stage, 'seconds']:.2f} | {table.loc[stage, 'least_s']:.2f} |"
    yield f"| {table.loc['prefill', 'reached']:.0%} of the rate |"
    yield f"| {table.loc['decode', 'reached']:.0%} of the bandwidth:"
    on_cpu = (
        0.96 * 100 * (fast["bf16"]["stage_decode_image_s"] + fast["bf16"]["stage_preprocess_s"])
    )
    yield f"| decoding and preprocessing images | {on_cpu:.2f} |"
    five = {
        with_prefix: row("h200-fast/w2", prefix_cache=with_prefix) for with_prefix in (True, False)
    }
    each = [100 / s for s in passes("h200-fast/w2", prefix_cache=True)]
    yield (
        f"{five[True]['images_per_s']:.1f} answers a second with `prefix_cache` (two passes, "
        f"{each[0]:.1f} and {each[1]:.1f},"
    )
    yield f"{five[False]['images_per_s']:.1f} without"
    times = rows["stock, batch 32, bf16"][0]["s_per_100_images"] / fast["bf16"]["s_per_100_images"]
    yield (
        f"together make it {times:.1f} times as fast as stock's batch 32; with 32 at once in both "
        f"it is {engine_at_32():.1f} times"
    )


def sizes() -> Iterator[str]:
    for model in SPLIT:
        cells = []
        for side in (256, 512, 1024, 2048):
            if (model, side) == ("8b", 1024):
                at, note = row(W1, precision="bf16", **FAST), " (`w1`)"
            else:
                at, note = row("h200-fast/sizes", model=f"random:{model}", resolution=side), ""
            cells.append(f"{at['s_per_100_images']:.{1 if side == 2048 else 2}f}{note}")
        yield f"| {model.upper()} | {' | '.join(cells)} |"


def levers() -> Iterator[str]:
    pays = break_even(frame("h200-fast/hits")).set_index("cache")
    yield (
        f"keys and values reach it from {pays.loc['prefix', 'claim_from']:.0%}, whole answers from "
        f"{pays.loc['answers', 'claim_from']:.0%}"
    )
    yield f"the article's {claim('cache_saving').number:g}%"
    bf16, fp8 = sum(right("bf16")), sum(right("fp8"))
    both = "both" if bf16 == fp8 else f"one, {fp8:.0f} in the other"
    yield f"(`fp8-quality.jsonl`): {bf16:.0f} right in {both}"


def changelog() -> Iterator[str]:
    fast = {p: row(W1, precision=p, **FAST)["s_per_100_images"] for p in ("bf16", "fp8")}
    yield f"take {fast['bf16']:.1f} s per 100 in bf16, {fast['fp8']:.1f} s in fp8"


PAGES = {
    "README.md": readme,
    "README.zh-CN.md": lambda: readme(chinese=True),
    "reports/README.md": reports,
    "docs/findings.md": findings,
    "CHANGELOG.md": changelog,
}
#: Pages of which other figures than these are no measurements.
IN_PART = ("CHANGELOG.md",)


def on_page(page: str) -> str:
    """A page as one line: phrases may go over the end of a line."""
    return " ".join((ROOT / page).read_text("utf-8").split())


def missing(page: str) -> list[str]:
    """Phrases that the page does not have with the figures that the run files give."""
    text = on_page(page)
    return [phrase for phrase in PAGES[page]() if " ".join(phrase.split()) not in text]


def unchecked(page: str) -> list[str]:
    """Figures of a page that no phrase recomputes and that are not said to have no file.

    A figure is a number with a point or a percent sign, and a table's cell that is a number.
    """
    text = (ROOT / page).read_text("utf-8")
    text = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", "", text, flags=re.DOTALL)
    no_file = r"\s+".join(NO_FILE.split())
    text = re.sub(rf"{no_file}.*?(?=^#|\Z)", "", text, flags=re.DOTALL | re.MULTILINE)
    for phrase in sorted((*PAGES[page](), *NO_MEASUREMENT, *QUOTED), key=len, reverse=True):
        words = re.sub(r"`[^`]*`", "", phrase).split()
        text = re.sub(r"\s+".join(map(re.escape, words)), "|", text)
    return re.findall(r"\d+\.\d+|\d+(?=%)|(?<=\| )[\d,]+(?= \|)", text)


def main() -> int:
    wrong = 0
    for page, phrases in PAGES.items():
        absent = missing(page)
        wrong += len(absent)
        print(page)
        for phrase in phrases():
            print("  differs " if phrase in absent else "  agrees  ", phrase)
        if page not in IN_PART and (left := unchecked(page)):
            wrong += len(left)
            print("  figures of no run file:", ", ".join(left))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
