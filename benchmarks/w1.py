"""The table of README under the measuring protocol: settings in rounds, then head to head.

    python data/make_workload.py uniform --out w96 --count 96 --width 1024 --height 1024
    python benchmarks/w1.py w96/uniform.jsonl out/w1.jsonl   # a GPU of 80 GB, half an hour

96 unique JPEGs of 1024 x 1024 pixels, one question each, 128 new tokens, 8B shapes with random
weights. ``--part`` takes one part after another, into one file: the fast engine with 96 at once in
bf16 and fp8 and with 32; the stock engine with 32; that one, as today's setting, the best and the
runner-up once more.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import qvl_lab as ql

TODAY = {"engine": "stock", "batch_size": 32, "precision": "bf16"}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("workload")
    options.add_argument("out", type=Path)
    options.add_argument("--part", choices=["fast", "equal", "stock", "confirm"])
    given = options.parse_args()
    workload = ql.load_workload(given.workload)
    fixed: dict[str, Any] = {"model": "random:8b", "workload": workload, "out": given.out}
    fixed |= {"resolution": 1024, "max_new_tokens": 128, "quality": False, "max_repeats": 3}
    fast = {"engine": "fast", "prefill_chunk": 32768}
    if given.part in (None, "fast"):
        ql.sweep(**fixed, **fast, batch_size=96, precision=["bf16", "fp8"])
    if given.part in (None, "equal"):
        ql.sweep(**fixed, **fast, batch_size=32, precision="bf16")
    if given.part in (None, "stock"):
        ql.sweep(**fixed, **TODAY)
    if given.part in (None, "confirm"):
        ql.confirm(given.out, workload=workload, current=TODAY, hold=["resolution"])
    columns = ["engine", "precision", "batch_size", "status", "s_per_100_images"]
    columns += ["s_per_100_images_low", "s_per_100_images_high", "repeats", "passes_thrown_away"]
    print(ql.Runs.load(given.out).frame()[columns].to_string())


if __name__ == "__main__":
    main()
