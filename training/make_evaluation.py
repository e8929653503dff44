"""Write the evaluation set: pictures that the embedded model has never seen, with true answers.

    python training/make_evaluation.py --out data/evaluation

Every scene gets a question about its code (large and small print in turn) and two of colour,
count and location; every receipt one about its total.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from scenes import LARGE_PRINT, SMALL_PRINT, Picture, Question, ask, generator, receipt, scene

SIGHT = ("colour", "count", "locate")


def scene_questions(index: int, seed: int) -> tuple[Picture, list[Question]]:
    """One scene; its code is in large print if the index is even."""
    rng = generator("evaluate", index, seed)
    large = index % 2 == 0
    picture = scene(rng, LARGE_PRINT if large else SMALL_PRINT)
    asked = [ask(rng, task, picture) for task in SIGHT if task != SIGHT[index // 2 % 3]]
    code = ask(rng, "read", picture)
    return picture, [
        *asked,
        Question(f"read_{'large' if large else 'small'}", code.text, code.answer),
    ]


def receipt_questions(index: int, seed: int) -> tuple[Picture, list[Question]]:
    """One receipt and its total."""
    rng = generator("evaluate", index, seed, "receipt")
    picture = receipt(rng)
    return picture, [ask(rng, "total", picture)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--scenes", type=int, default=120)
    parser.add_argument("--receipts", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    (args.out / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for kind, count, make in (
        ("scene", args.scenes, scene_questions),
        ("receipt", args.receipts, receipt_questions),
    ):
        for index in range(count):
            picture, questions = make(index, args.seed)
            name = f"{kind}_{index:03d}"
            picture.image.save(args.out / "images" / f"{name}.jpg", quality=92)
            for question in questions:
                row = {"id": f"{name}_{question.task}", "image": f"images/{name}.jpg"}
                row |= {"question": question.text, "answer": question.answer}
                rows.append(row | {"task": question.task})
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    table = args.out / f"{args.out.resolve().name}.jsonl"
    table.write_text("".join(lines), encoding="utf-8", newline="\n")
    print(f"{len(rows)} questions about {args.scenes + args.receipts} pictures in {args.out}")


if __name__ == "__main__":
    main()
