"""Draw several answers to one question: the same seed gives the same answers again."""

import sys

import qvl_lab as ql


def main(image: str, question: str, model: str = "tiny") -> None:
    options = {"engine": "fast", "resolution": 256, "max_new_tokens": 12}
    with ql.load(model) as lab:
        greedy = lab.generate_batch(image, question, **options)
        print("most likely:", *greedy.texts)
        for seed in range(3):
            drawn = lab.generate_batch(image, question, temperature=1.5, seed=seed, **options)
            print(f"seed {seed}:", *drawn.texts)


if __name__ == "__main__":
    main(*sys.argv[1:])
