"""Ask two questions about one image: the second finds the image in the encoder cache."""

import sys

import qvl_lab as ql


def main(image: str, first: str, second: str, model: str = "tiny") -> None:
    options = {"engine": "fast", "encoder_cache_gib": 0.1, "resolution": 256, "max_new_tokens": 8}
    with ql.load(model) as lab:
        for question in (first, second):
            generation = lab.generate_batch(image, question, **options)
            print(f"{question} {generation.texts[0]}")
            print(f"  {generation.caches['encoder_hits']} found in the cache")


if __name__ == "__main__":
    main(*sys.argv[1:])
