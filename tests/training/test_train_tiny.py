"""The embedded model's training: what it is shown is what inference shows it."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))

import train_tiny
from bank import CHARACTERS, HUNDREDS, LONG_TOKENS, SHORT_TOKENS, TENS, WORD, Bank, Supply, fill
from scenes import Print, Shape, generator, scene
from train_tiny import Gradients, Student, dense_targets, pixels, turns

from qvl_lab.session import load


@pytest.fixture(scope="module")
def banks() -> dict[str, Bank]:
    banks = {}
    for kind in ("scene", "receipt"):
        bank = Bank.empty(kind, 2)
        for index in range(2):
            fill(bank, kind, index, generator("train", index, 0, kind))
        banks[kind] = bank.to("cpu")
    return banks


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "side"), [("scene", 512), ("scene", 192), ("receipt", 256)])
def test_a_turn_in_training_is_the_same_as_a_question_alone(banks, tmp_path, kind, side):
    """Logits of the answer in the packed sequence equal those of the plain model."""
    bank, picks = banks[kind], torch.tensor([0, 1])
    student = Student("cpu", 0)
    train_tiny.save(student, tmp_path)
    lab = load(str(tmp_path), precision="fp32", device="cpu")
    student.model.load_state_dict(lab.loaded.model.state_dict())
    student.model.eval()
    x = pixels(bank, picks, side)
    grid = x.shape[2] // 32, x.shape[3] // 32
    seen = {}
    student.model.lm_head.register_forward_hook(lambda _m, _i, out: seen.update(logits=out))
    with torch.inference_mode():
        student.talk_loss(*student.see(x), bank, picks, grid)
        ids, _, _ = turns(bank, picks)
    visual = [student.config.image_token_id] * (grid[0] * grid[1])
    template = torch.tensor([*student.start, *visual, *student._template[0, -1:]])
    widths = [LONG_TOKENS] * bank.long.ids.shape[1]
    widths += [SHORT_TOKENS] * bank.short.ids.shape[1]
    begin = 0
    for width in widths:
        turn = ids[1, begin : begin + width]
        length = int(turn.nonzero().max()) + 1
        alone = torch.cat([template, turn[:length]])[None]
        picture = pixels(bank, picks[1:], side)[0]
        image = ((picture + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
        inputs = lab.loaded.image_processor(images=[image], do_resize=False, return_tensors="pt")
        with torch.inference_mode():
            expected = lab.loaded.model(
                input_ids=alone,
                mm_token_type_ids=(alone == lab.loaded.model.config.image_token_id).int(),
                **inputs,
            ).logits[0]
        got = seen["logits"][1, begin : begin + length]
        torch.testing.assert_close(got, expected[len(template) :], atol=2e-4, rtol=2e-3)
        begin += width


def test_prompt_of_a_turn_is_the_chat_template(banks):
    lab = load("tiny", precision="fp32")
    ids = banks["scene"].short.ids[0, 0].tolist()
    question = lab.loaded.tokenizer.decode(ids).split("<|im_end|>")[0]
    text = lab.processor.prompt(question)
    student = Student("cpu", 0)
    prompt = lab.loaded.tokenizer.encode(text, add_special_tokens=False)
    answer = int(banks["scene"].short.weight[0, 0].nonzero()[0])
    image = [student.config.image_token_id]
    end = student._template[0, len(student.start) :].tolist()
    assert prompt == student.start + image + end + ids[:answer]


def test_dense_targets_by_hand():
    shape = Shape("square", "red", (64, 96, 128, 160))
    text = Print("7.", 20, ((300.0, 40.0), (310.0, 40.0)))
    shapes, characters = torch.zeros(1, 6, 6), torch.zeros(1, 6, 3)
    shapes[0, 0] = torch.tensor([2, 1, *(v / 512 for v in shape.box)])
    for k, (x, y) in enumerate(text.centres):
        characters[0, k] = torch.tensor([CHARACTERS.index(text.text[k]) + 1, x / 512, y / 512])
    goal = dense_targets(shapes, characters, (16, 16))
    cells = {i * 16 + j for i in (3, 4) for j in (2, 3)}
    assert set(goal["form"].nonzero().flatten().tolist()) == cells
    assert goal["form"].max() == 2 and goal["colour"].max() == 1
    box = [125, 188, 250, 312]  # thousandths of 512
    cell = min(cells)
    assert goal["hundreds"][cell].tolist() == [v // 100 for v in box]
    assert goal["tens"][cell].tolist() == [v // 10 % 10 for v in box]
    at = 1 * 16 + 9  # both characters have their centre in row 1, column 9
    assert goal["characters"][at, :2].tolist() == [8, 11]
    assert goal["characters"].count_nonzero() == 2


def test_seeds_of_training_and_evaluation_never_meet():
    train, test = (np.asarray(scene(generator(p, 5)).image) for p in ("train", "evaluate"))
    assert (train != test).any()
    again = np.asarray(scene(generator("train", 5)).image)
    assert (train == again).all()


def test_weights_and_looks_of_a_box_and_of_a_code(banks):
    bank = banks["scene"]
    ids, weight, look = (part[0, 0].tolist() for part in vars(bank.long).values())
    words = [encode_text(i) for i in ids]
    numbers = "".join(w for w, at in zip(words, look, strict=True) if at).rstrip("],").split(", ")
    assert len(numbers) == 4 and all(n.isdigit() for n in numbers)
    (about,) = {at for at in look if at}
    box = bank.shapes[0, about - 1, 2:]
    assert [int(n) for n in numbers] == [round(1000 * v.item()) for v in box]
    assert weight.count(HUNDREDS) == sum(len(n) == 3 for n in numbers)
    assert weight.count(TENS) == sum(len(n) >= 2 for n in numbers)
    weight, look = bank.short.weight[0, 4].tolist(), bank.short.look[0, 4].tolist()
    assert [at for at in look if at] == [7, 8, 9, 10]
    assert weight.count(WORD) == 5  # four digits and the end


def encode_text(token: int) -> str:
    from bank import _tokenizer

    return _tokenizer().decode([token], skip_special_tokens=False)


@pytest.mark.parametrize("index", range(8))
def test_a_visual_token_sees_characters_of_one_label(index):
    """At 384 px too, the smallest at which dense targets are asked for."""
    bank = Bank.empty("sheet", 1)
    fill(bank, "sheet", 0, generator("train", index, 0, "sheet"))
    grid = (384 // 32, 384 // 32)
    goal = dense_targets(*(torch.from_numpy(a) for a in (bank.shapes, bank.characters)), grid)
    assert (bank.characters[0, :, 0] > 0).sum() > 20
    assert goal["characters"].count_nonzero() == (bank.characters[0, :, 0] > 0).sum()


def test_a_round_brings_new_pictures_to_the_same_place():
    supply = Supply({"scene": 2, "sheet": 1}, seed=3)
    first = supply.next("cpu")
    places = [array.data_ptr() for array in first["scene"].arrays()]
    seen = first["scene"].images.clone()
    second = supply.next("cpu", last=True)
    assert [array.data_ptr() for array in second["scene"].arrays()] == places
    assert (second["scene"].images != seen).any()
    expected = Bank.empty("scene", 2)
    for row in range(2):
        fill(expected, "scene", row, generator("train", 2 + row, 3))
    for mine, theirs in zip(second["scene"].arrays(), expected.arrays(), strict=True):
        assert (mine.numpy() == theirs).all()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["scene", "sheet"])
def test_a_recorded_step_has_the_gradients_of_a_plain_one(kind):
    bank = Bank.empty(kind, 4)
    for row in range(4):
        fill(bank, kind, row, generator("train", row, 0, kind))
    bank, picks = bank.to("cuda"), torch.tensor([0, 2], device="cuda")
    gradients = {}
    for graphs in (False, True):
        student = Student("cuda", 0)
        step = Gradients(student, graphs)
        with train_tiny._side_stream("cuda"):
            step(bank, torch.tensor([1, 3], device="cuda"), 512, True)
            torch.manual_seed(1)  # the same noise
            step(bank, picks, 512, True)
            torch.cuda.synchronize()
        gradients[graphs] = torch.cat([w.grad.flatten() for w in step.weights])
    apart = (gradients[True] - gradients[False]).norm() / gradients[False].norm()
    assert apart < 0.01  # sums in another order; two plain runs differ by 0.001
