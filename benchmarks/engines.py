"""How much faster the fast engine is than stock's: ``python benchmarks/engines.py``.

Both answer the same questions in turn, in a random order each round; medians over the rounds, and
the least time of each.
"""

from __future__ import annotations

import argparse
import random
import time
from statistics import median

import qvl_lab as ql
from qvl_lab.workloads.sources import load_workload


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", default="tiny")
    options.add_argument("--precision", default="fp32")
    options.add_argument("--workload", default="mixed,evaluation")
    options.add_argument("--items", type=int, default=24)
    options.add_argument("--resolution", default="256,512")
    options.add_argument("--batch-size", default="1,4,8,16")
    options.add_argument("--max-new-tokens", type=int, default=24)
    options.add_argument("--rounds", type=int, default=12)
    given = options.parse_args()
    # one each, so that neither gives its memory back to the other
    labs = {e: ql.load(given.model, precision=given.precision) for e in ("stock", "fast")}
    draw = random.Random(0)
    print("workload    px  batch  stock s  fast s  times  of the least")
    for workload in given.workload.split(","):
        items = list(load_workload(workload).sample(given.items, 0).items)
        for resolution in map(int, given.resolution.split(",")):
            for batch_size in map(int, given.batch_size.split(",")):
                took: dict[str, list[float]] = {engine: [] for engine in labs}
                for counted in [False] + [True] * given.rounds:
                    for engine in draw.sample(list(labs), 2):
                        started = time.perf_counter()
                        labs[engine].generate_batch(
                            items,
                            engine=engine,
                            batch_size=batch_size,
                            resolution=resolution,
                            max_new_tokens=given.max_new_tokens,
                        )
                        if counted:
                            took[engine].append(time.perf_counter() - started)
                middle = [median(took[engine]) for engine in ("stock", "fast")]
                least = min(took["stock"]) / min(took["fast"])
                print(
                    f"{workload:10} {resolution:4} {batch_size:5} {middle[0]:8.2f} {middle[1]:7.2f}"
                    f" {middle[0] / middle[1]:6.2f} {least:8.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
