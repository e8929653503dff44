"""Measure the same work with two checkouts of the package, in alternation on one machine.

    git worktree add ../before COMMIT
    python benchmarks/compare_checkouts.py ../before . --work cpu
    python benchmarks/compare_checkouts.py ../before . --work w1   # a GPU of 40 GB or more

A round starts a fresh process for each checkout and runs a few passes in it; what counts is the
median from the third pass on, since the first two compile and warm up. Rounds alternate the order
(ABBA…), so that a drift of the machine meets both alike.

``w1`` is 96 unique JPEGs of 1024 x 1024 pixels, one prompt, 128 new tokens each, 8B shapes with
random weights, bf16, all 96 at once with the fast engine. ``cpu`` is 32 images of the packaged set
``mixed`` at 512 px with the embedded model, batch 8, 16 new tokens, with both engines.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

#: Settings by work: name of the setting to options of ``generate_batch``.
WORKS: dict[str, dict[str, dict[str, Any]]] = {
    "w1": {
        "fast bf16": {
            "engine": "fast",
            "batch_size": 96,
            "resolution": 1024,
            "max_new_tokens": 128,
            "prefill_chunk": 32768,
        }
    },
    "cpu": {
        engine: {"engine": engine, "batch_size": 8, "resolution": 512, "max_new_tokens": 16}
        for engine in ("stock", "fast")
    },
}

#: Passes that compile and warm up, and do not count.
WARM_UP = 2


def pictures(count: int, side: int) -> list[bytes]:
    """Encode ``count`` different JPEGs of ``side`` by ``side`` pixels of smooth noise."""
    import numpy as np
    from PIL import Image

    files = []
    for seed in range(count):
        noise = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        file = io.BytesIO()
        image = Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)
        image.save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def measure(work: str, passes: int) -> dict[str, list[float]]:
    """Run the work with the package on the path; seconds of each pass by setting."""
    import qvl_lab as ql

    if work == "w1":
        lab = ql.load("random:8b", precision="bf16")
        images: list[Any] = pictures(96, 1024)
        prompts: str | None = "Describe this image in detail."
    else:
        lab = ql.load("tiny", precision="fp32", device="cpu")
        images, prompts = list(ql.load_workload("mixed").items)[:32], None
    seconds: dict[str, list[float]] = {}
    for name, options in WORKS[work].items():
        for _ in range(passes):
            started = time.perf_counter()
            answers = lab.generate_batch(images, prompts, **options)
            seconds.setdefault(name, []).append(time.perf_counter() - started)
            failed = [answer.error for answer in answers if answer.error]
            if len(failed) == len(answers):
                raise SystemExit(f"no image was answered: {failed[0]}")
    return seconds


def in_checkout(folder: str, work: str, passes: int) -> dict[str, list[float]]:
    """Measure in a fresh process that imports the package of a checkout."""
    command = [sys.executable, __file__, "--child", work, "--passes", str(passes)]
    environment = os.environ | {"PYTHONPATH": str(Path(folder).resolve())}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("checkouts", nargs="*", help="the checkout before and the one after")
    parser.add_argument("--work", choices=sorted(WORKS), default="cpu")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--passes", type=int, default=WARM_UP + 5)
    parser.add_argument("--out", type=Path, help="write all passes as JSON")
    parser.add_argument("--child", choices=sorted(WORKS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child, options.passes)))
        return
    if options.passes <= WARM_UP:
        parser.error(f"--passes is at least {WARM_UP + 1}: the first {WARM_UP} warm up")
    if len(options.checkouts) != 2:
        parser.error("name two checkouts: the one before and the one after")
    before, after = options.checkouts
    rounds: list[dict[str, Any]] = []
    for number in range(options.rounds):
        order = [("before", before), ("after", after)]
        for name, folder in order if number % 2 == 0 else reversed(order):
            seconds = in_checkout(folder, options.work, options.passes)
            rounds.append({"round": number, "checkout": name, "seconds": seconds})
            print(f"round {number}, {name}: {json.dumps(seconds)}", flush=True)
    for setting in WORKS[options.work]:
        warm = {
            name: [
                statistics.median(r["seconds"][setting][WARM_UP:])
                for r in rounds
                if r["checkout"] == name
            ]
            for name in ("before", "after")
        }
        pairs = zip(warm["after"], warm["before"], strict=True)
        ratios = [math.log(a / b) for a, b in pairs]
        change = math.expm1(statistics.fmean(ratios))
        medians = {name: statistics.median(values) for name, values in warm.items()}
        print(
            f"{setting}: before {medians['before']:.3f} s, after {medians['after']:.3f} s a pass, "
            f"{change:+.1%} over {len(ratios)} paired rounds"
        )
    if options.out:
        options.out.write_text(json.dumps(rounds, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
