"""Where the time of a call goes, stage by stage."""

import sys

import qvl_lab as ql


def main(folder: str, model: str = "tiny") -> None:
    options = {"batch_size": 2, "resolution": 256, "max_new_tokens": 8}
    workload = ql.load_workload(folder)
    with ql.load(model) as lab:
        lab.generate_batch(workload.items[:1], **options)  # what only first calls do is left out
        with ql.profile(lab, kernels=False) as profile:
            lab.generate_batch(workload, **options)
    print(profile)


if __name__ == "__main__":
    main(*sys.argv[1:])
