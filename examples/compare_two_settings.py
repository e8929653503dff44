"""Measure two settings and compare them: python compare_two_settings.py evaluation 16."""

import sys

import qvl_lab as ql

# engine  batch_size  images_per_s  quality
#  stock           1          3.55     0.83
#   fast           8          8.95     0.83
# 2.5 times as fast (on one core of a server's CPU)


def main(workload: str = "evaluation", items: str = "16") -> None:
    shared = {"workload": workload, "items": int(items), "out": "two-runs.jsonl"}
    shared |= {"resolution": 256, "precision": "fp32", "progress": False}
    today = ql.sweep(engine="stock", batch_size=1, **shared)
    other = ql.sweep(engine="fast", batch_size=8, **shared)
    frame = ql.Runs([*today, *other]).frame().round(2)
    print(frame[["engine", "batch_size", "images_per_s", "quality"]].to_string(index=False))
    print(f"{frame['images_per_s'][1] / frame['images_per_s'][0]:.1f} times as fast")


if __name__ == "__main__":
    main(*sys.argv[1:])
