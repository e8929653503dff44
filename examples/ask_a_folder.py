"""Ask one question about every image of a folder: python ask_a_folder.py photos "What is this?"."""

import sys

import qvl_lab as ql


def main(folder: str, question: str, model: str = "tiny") -> None:
    workload = ql.load_workload(folder, question=question)
    with ql.load(model) as lab:
        generation = lab.generate_batch(workload, batch_size=4, resolution=256, max_new_tokens=16)
    for answer in generation:
        print(f"{answer.id}: {answer.text or answer.error}")
    print(generation)


if __name__ == "__main__":
    main(*sys.argv[1:])
