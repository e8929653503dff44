"""What the rows of a run file cost on a GPU, and which setting to run instead."""

import sys

import qvl_lab as ql


def main(runs: str, gpu: str = "A10G") -> None:
    frame = ql.price(ql.Runs.load(runs).frame(), gpu=gpu, currency="CNY")
    columns = ["precision", "resolution", "batch_size", "cost_cny_per_100_images"]
    print(frame[columns].sort_values("cost_cny_per_100_images").to_string(index=False))
    print(ql.recommend(frame))


if __name__ == "__main__":
    main(*sys.argv[1:])
