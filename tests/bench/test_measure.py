"""One configuration to one Run: what is counted, what is a result and what an error."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from qvl_lab.analysis.frame import frame
from qvl_lab.analysis.quality.scoring import TaskScores, score_items
from qvl_lab.backends.base import Answer
from qvl_lab.backends.generation import Generation
from qvl_lab.backends.transformers import TransformersBackend
from qvl_lab.bench.executors import per_process as executors
from qvl_lab.bench.measure import measure, remember, scores_of
from qvl_lab.bench.protocol import Gate
from qvl_lab.bench.trial import Plan, Trial
from qvl_lab.config import Config
from qvl_lab.errors import ModelError
from qvl_lab.models.architecture import Architecture
from qvl_lab.models.load import parameter_count
from qvl_lab.probe import contention
from qvl_lab.runs.records import PARTS, STAGES, Run, Work
from qvl_lab.workloads.items import Item, Workload
from qvl_lab.workloads.resize import target_size
from qvl_lab.workloads.sources import load_workload

FIELDS: dict[str, Any] = {
    "batch_size": 4,
    "resolution": 64,
    "precision": "fp32",
    "device": "cpu",
    "max_new_tokens": 3,
}


@pytest.fixture
def trial(pictures) -> Callable[..., Trial]:
    def make(workload: Any = None, plan: dict[str, Any] | None = None, **fields: Any) -> Trial:
        return Trial(
            config=Config().replace(**FIELDS | fields),
            workload=load_workload(workload or pictures),
            plan=Plan(**{"repeats": 2, "warmup": 1} | (plan or {})),
        )

    return make


@pytest.fixture
def batches(monkeypatch) -> list[int]:
    """The size of every batch that gets to the model."""
    sizes: list[int] = []
    real = TransformersBackend._generate

    def generate(self, inputs, *options):
        sizes.append(len(inputs["input_ids"]))
        return real(self, inputs, *options)

    monkeypatch.setattr(TransformersBackend, "_generate", generate)
    return sizes


def fail_after(monkeypatch, passes: int, error: Exception) -> None:
    """Let everything after so many batches fail."""
    real = TransformersBackend._generate
    left = [passes]

    def generate(self, *arguments):
        if not left[0]:
            raise error
        left[0] -= 1
        return real(self, *arguments)

    monkeypatch.setattr(TransformersBackend, "_generate", generate)


def test_a_run_keeps_every_repeat_and_its_counts(lab, trial):
    run = measure(trial(), lambda _: lab)
    assert (run.status, run.reason) == ("ok", None)
    assert len(run.repeats) == 2
    for repeat in run.repeats:
        assert (repeat.answered, repeat.failed) == (8, 0)
        assert repeat.visual_tokens == 3 * 4 + 5 * 2  # 64 x 64 pixels, 64 x 32 for the wider
        assert repeat.new_tokens == 8 * 3
        times = list(zip(repeat.queue_s, repeat.ttft_s, repeat.e2e_s, strict=True))
        assert len(times) == 8
        assert all(0 <= queue < ttft < e2e <= repeat.wall_s for queue, ttft, e2e in times)
        assert sum(queue > repeat.wall_s / 4 for queue, *_ in times) == 4  # the second batch waits
        assert len(repeat.batch_s) == 2
        assert set(repeat.stages_s) == {*STAGES, "other"}
        assert sum(repeat.stages_s.values()) == pytest.approx(repeat.wall_s, rel=0.02)
        assert set(repeat.parts_s) == set(PARTS)
        work = Work(**repeat.work)
        assert (work.images, work.batches) == (8, 2)
        assert work.patches == 4 * repeat.visual_tokens
        assert (work.prompt_tokens, work.decode_rows) == (repeat.prompt_tokens, 8 * 2)
    sizes = Architecture.from_dict(run.architecture)
    assert sum(sizes.parameters().values()) == parameter_count(lab.loaded.model)


def test_a_run_of_an_unknown_family_has_no_architecture(lab, trial, monkeypatch):
    config = lab.loaded.model.config
    monkeypatch.setattr(type(config), "to_dict", lambda _: {"model_type": "qwen9_vl"})
    run = measure(trial(), lambda _: lab)
    assert (run.status, run.architecture) == ("ok", {})


def test_a_run_says_what_was_run_and_on_what(lab, trial):
    asked = trial()
    run = measure(asked, lambda _: lab)
    assert run.key == asked.key
    assert run.config == asked.config.flat()
    assert run.resolved == {"device": "cpu", "precision": "fp32"}
    assert run.random_weights is True
    assert run.cache_state == "off"
    assert run.workload["items"] == run.workload["measured_items"] == 8
    assert run.plan == {
        **{"repeats": 2, "warmup": 1, "timed_items": None, "batches": None, "seed": 0},
        **{"quality": True, "metrics": {}, "min_pass_s": 0.0, "phase": "sweep"},
    }
    assert run.cold["load_s"] == lab.loaded.load_s
    assert run.cold["warmup_s"] > 0
    assert run.memory["allocated"] is None  # torch counts on CUDA only
    assert run.memory["process"] > 100 * 2**20


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ({"warmup": 0, "repeats": 1}, [4, 4]),
        ({"warmup": 1, "repeats": 1}, [4, 4, 4]),
        ({"warmup": 1, "repeats": 3}, [4] * 7),
        ({"warmup": 0, "repeats": 2, "batches": 1}, [4, 4]),
    ],
)
def test_warm_up_and_repeats_run_as_many_batches_as_planned(lab, trial, batches, plan, expected):
    measure(trial(plan=plan), lambda _: lab)
    assert batches == expected


def test_the_static_cache_is_warmed_up_on_every_shape(lab, trial, batches):
    measure(trial(cache_implementation="static", plan={"repeats": 1}), lambda _: lab)
    assert batches == [4, 4, 4, 4]


def test_a_limit_on_batches_says_how_many_items_were_measured(lab, trial):
    run = measure(trial(plan={"batches": 1}, batch_size=2), lambda _: lab)
    assert run.workload["measured_items"] == 2
    assert [repeat.answered for repeat in run.repeats] == [2, 2]
    assert run.workload["items"] == 8


def test_reading_from_disk_is_not_measured(lab, trial, pictures, monkeypatch):
    reads: list[Path] = []
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: reads.append(self) or real(self))
    measure(trial(plan={"repeats": 3}), lambda _: lab)
    images = [path for path in reads if path.parent == pictures]
    fingerprints = 2 * 8  # of the workload: its content, and how many images are unique
    assert len(images) <= fingerprints * 2 + 8


def test_failed_items_are_counted_and_named_and_the_rest_is_measured(lab, trial, pictures):
    (pictures / "3.png").write_text("no picture")
    run = measure(trial(), lambda _: lab)
    assert run.status == "ok"
    assert [(r.answered, r.failed) for r in run.repeats] == [(7, 1), (7, 1)]
    assert [failure["id"] for failure in run.failures] == ["3.png"]
    assert "not an image" in run.failures[0]["error"]


def test_a_run_without_any_answer_is_an_error(lab, trial, pictures):
    for path in pictures.iterdir():
        path.write_text("no picture")
    run = measure(trial(), lambda _: lab)
    assert run.status == "error"
    assert run.reason.startswith("no item was answered; the first, 0.png: not an image")


def test_out_of_memory_is_a_result_that_keeps_finished_repeats(lab, trial, monkeypatch):
    fail_after(monkeypatch, 3, torch.OutOfMemoryError("CUDA out of memory. Tried 1 GiB\nmore"))
    run = measure(trial(), lambda _: lab)  # one batch of warm-up, two of the first repeat
    assert run.status == "oom"
    assert run.reason == "batch of 4: CUDA out of memory. Tried 1 GiB"
    assert len(run.repeats) == 1


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory.\nmore"), "CUDA out of memory."),
        (MemoryError(), "MemoryError"),
    ],
)
def test_out_of_memory_while_loading_is_a_result_too(trial, error, words):
    def load(_):
        raise error

    run = measure(trial(), load)
    assert (run.status, run.reason) == ("oom", f"while loading: {words}")
    assert run.repeats == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("boom"), "the model failed: RuntimeError: boom"),
        (ModelError("bad weights"), "bad weights"),
    ],
)
def test_a_failing_model_is_an_error_row(lab, trial, monkeypatch, error, reason):
    fail_after(monkeypatch, 1, error)
    run = measure(trial(), lambda _: lab)
    assert (run.status, run.reason) == ("error", reason)


def test_ctrl_c_is_no_result(trial):
    def load(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(trial(), load)


def test_a_precision_that_is_missing_is_an_error_row(trial, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    run = measure(trial(precision="int8"))
    assert run.status == "error"
    assert "pip install" in run.reason


def test_memory_really_running_out_on_the_cpu_is_an_oom_row_and_the_next_row_is_measured(trial):
    trials = [
        trial(memory_limit_gib=0.01, plan={"repeats": 1}),
        trial(plan={"repeats": 1}),
    ]
    small, free = executors.measure_per_process(trials, 60)
    assert small.status == "oom", small.reason
    assert "memory" in small.reason.lower()
    assert free.status == "ok"


@pytest.mark.slow
def test_a_limit_between_loading_and_running_fails_the_large_batch_only(trial, tmp_path):
    from PIL import Image

    folder = tmp_path / "large"
    folder.mkdir()
    for i in range(8):
        Image.new("RGB", (1024, 1024), (i, i, i)).save(folder / f"{i}.png")
    free = next(executors.measure_per_process([large(trial, folder, 1, None)], 120))
    room = free.memory["process"] / 2**30 + 0.3  # a batch of 8 wants over 0.6 more
    trials = [large(trial, folder, size, room) for size in (1, 8)]
    one, eight = executors.measure_per_process(trials, 120)
    assert one.status == "ok", one.reason
    assert eight.status == "oom"
    assert eight.reason.startswith("batch of 8: ")


def large(trial: Callable[..., Trial], folder: Path, batch_size: int, limit: float | None) -> Trial:
    plan = {"repeats": 1, "warmup": 0, "batches": 1}
    fields = {"resolution": 1024, "max_new_tokens": 1, "memory_limit_gib": limit}
    return trial(folder, plan, batch_size=batch_size, **fields)


# ---- answers and their scores

SIX: dict[str, Any] = {"resolution": 128, "max_new_tokens": 40, "batch_size": 6}


@pytest.fixture(scope="module")
def six() -> Workload:
    """A question of each task, in the order of the file."""
    workload = load_workload("evaluation").sample(6)
    assert len({item.task for item in workload.items}) == 6
    return workload


def test_a_run_of_a_trained_model_has_scores_and_all_answers(trained, trial, six):
    run = measure(trial(six, plan={"repeats": 1, "warmup": 0}, **SIX), lambda _: trained)
    assert (run.status, run.random_weights) == ("ok", False)
    items = six.items
    texts = trained.generate_batch(items, batch_size=6, resolution=128, max_new_tokens=40).texts
    assert run.answers == [
        {
            "id": i.id,
            "task": i.task,
            "question": i.question,
            "expected": i.reference,
            "answer": text,
            "image_size": list(target_size(Image.open(i.path or i.image).size, 128)),
        }
        for i, text in zip(items, texts, strict=True)
    ]
    wanted = score_items(items, texts)
    assert all(found.images for found in wanted.values())
    assert {task: TaskScores.from_dict(found) for task, found in run.scores.items()} == wanted
    assert list(run.scores) == list(dict.fromkeys(item.task for item in items))
    assert run.scores["locate"]["metric"] == "box_accuracy"
    assert sum(found["values"][0] for found in run.scores.values()) >= 2  # even at 128 px
    assert Run.from_json(run.to_json()) == run


@pytest.mark.parametrize(("kind", "said"), [("qwen2_5_vl", 1.0), ("qwen3_vl", 0.0)])
def test_boxes_are_read_in_the_form_that_the_model_writes(kind, said):
    """Pixels of the image as the model saw it, or thousandths of its sides."""
    lab = SimpleNamespace(
        loaded=SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(model_type=kind)))
    )
    item = Item("a", b"", "Where?", reference="[100, 200, 300, 400]", task="locate")
    seen = Answer(id="a", text="[200, 300, 600, 600]", image_size=(2000, 1500))
    found = scores_of(Generation(answers=[seen]), [item], lab)["locate"]
    assert found.values == (0.0,)
    assert found.normalised == (said,)


def test_metrics_of_the_plan_score_the_answers(trained, trial, six):
    plan = {"repeats": 1, "warmup": 0, "metrics": {"locate": "iou", "TOTAL": "anls"}}
    run = measure(trial(six, plan=plan, **SIX), lambda _: trained)
    metrics = {task: found["metric"] for task, found in run.scores.items()}
    assert (metrics["locate"], metrics["total"]) == ("iou", "anls")
    assert metrics["colour"] == "exact_match"


def test_random_weights_have_neither_scores_nor_answers(lab, trial, six, batches):
    plan = {"repeats": 1, "warmup": 0, "batches": 1}
    fields = SIX | {"batch_size": 2, "max_new_tokens": 2}
    run = measure(trial(six, plan=plan, **fields), lambda _: lab)
    assert (run.status, run.scores, run.answers) == ("ok", {}, [])
    assert batches == [2]


def test_without_quality_nothing_is_scored(trained, trial, six, batches):
    plan = {"repeats": 1, "warmup": 0, "batches": 1, "quality": False}
    run = measure(trial(six, plan=plan, **SIX | {"batch_size": 2}), lambda _: trained)
    assert (run.status, run.scores, run.answers) == ("ok", {}, [])
    assert batches == [2]


@pytest.mark.slow
def test_a_limit_on_batches_has_all_items_answered_once_more_untimed(trained, trial, six, batches):
    plan = {"repeats": 2, "warmup": 1, "batches": 1}
    run = measure(trial(six, plan=plan, **SIX | {"batch_size": 4}), lambda _: trained)
    assert batches == [4, 4, 4, 4, 2]  # warm-up, two repeats, then all six
    assert [repeat.answered for repeat in run.repeats] == [4, 4]
    assert (run.workload["items"], run.workload["measured_items"]) == (6, 4)
    assert [answer["id"] for answer in run.answers] == [item.id for item in six.items]
    assert sum(len(found["values"]) for found in run.scores.values()) == 6


def test_no_pass_is_paid_for_where_no_answer_is_known(trained, trial, batches):
    fields = {"batch_size": 4, "max_new_tokens": 2}
    plan = {"repeats": 1, "warmup": 0}
    some = measure(trial(plan=plan | {"batches": 1}, **fields), lambda _: trained)
    assert (batches, some.scores, some.answers) == ([4], {}, [])
    every = measure(trial(plan=plan | {"batches": 2}, **fields), lambda _: trained)
    assert batches == [4, 4, 4]
    assert every.scores == {}
    assert [answer["id"] for answer in every.answers] == [f"{i}.png" for i in range(8)]
    assert all(a["answer"] is not None and a["expected"] is None for a in every.answers)


@pytest.mark.parametrize("limit", [None, 1])
def test_a_failed_item_scores_nothing(trained, trial, six, tmp_path, limit):
    """Also where the timed passes did not see it."""
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    colour = next(item for item in six.items if item.task == "colour")
    items = (colour, Item("bad", bad, "What colour is it?", "red", "colour"))
    plan = {"repeats": 1, "warmup": 0, "batches": limit}
    fields = SIX | {"batch_size": 1 if limit else 2}
    workload = Workload("two", items)
    if limit:  # the first of the sample's seeds that draws the good one
        seed = next(s for s in range(99) if workload.sample(1, s).items == (colour,))
        plan["seed"] = seed
    run = measure(trial(workload, plan=plan, **fields), lambda _: trained)
    assert run.status == "ok"
    assert [repeat.failed for repeat in run.repeats] == [0 if limit else 1]
    assert run.answers[1]["answer"] is None
    found = TaskScores.from_dict(run.scores["colour"])
    assert (found.values[1], found.count, found.missing) == (None, 2, 1)
    assert [failure["id"] for failure in run.failures] == ["bad"]


def test_keys_name_settings_workload_and_plan(trial, pictures):
    same = [trial(), trial()]
    assert len({j.key for j in same}) == 1
    (pictures / "more.png").write_bytes((pictures / "0.png").read_bytes())
    others = [trial(batch_size=2), trial(plan={"repeats": 3}), trial()]
    assert len({j.key for j in [*same, *others]}) == 4


@pytest.mark.slow
def test_a_remembering_loader_keeps_the_last_model_only(trial):
    get_lab = remember()
    fp32, bf16 = (trial(precision=p).config.model for p in ("fp32", "bf16"))
    first = get_lab(fp32)
    assert get_lab(fp32) is first
    assert get_lab(bf16) is not first
    assert get_lab(fp32) is not first


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@pytest.mark.gpu
@needs_cuda
def test_memory_running_out_on_the_gpu_is_an_oom_row_and_the_next_is_measured(trial):
    fields = {"device": "cuda", "precision": "bf16", "plan": {"repeats": 1}}
    trials = [trial(memory_limit_gib=0.01, **fields), trial(**fields)]
    small, free = executors.measure_per_process(trials, 300)
    assert small.status == "oom", small.reason
    assert free.status == "ok", free.reason
    assert free.memory["reserved"] >= free.memory["allocated"] > 0


@pytest.mark.gpu
@needs_cuda
def test_stages_on_the_gpu_add_up_to_the_wall_time_within_five_percent(trial):
    run = measure(trial(device="cuda", resolution=256, plan={"repeats": 3}))
    assert run.status == "ok"
    for repeat in run.repeats:
        assert sum(repeat.stages_s.values()) == pytest.approx(repeat.wall_s, rel=0.05)


# ---- what caches know images by


def recoloured(pictures: Path, tmp_path: Path) -> Workload:
    """Four of the pictures, then four copies of the first in files of their own."""
    items = list(load_workload(pictures).items[:4])
    for i in range(4):
        path = tmp_path / f"copy {i}.png"
        path.write_bytes((pictures / "0.png").read_bytes())
        items.append(Item(path.name, path))
    return Workload("copies", tuple(items))


@pytest.mark.slow
@pytest.mark.parametrize(("cache_key", "misses"), [("content", 4), ("path", 8)])
def test_a_cache_by_path_knows_images_by_their_files(
    lab, trial, pictures, tmp_path, cache_key, misses
):
    fields = {"engine": "fast", "encoder_cache_gib": 0.05, "kv_cache_gib": 0.02, "batch_size": 1}
    workload = recoloured(pictures, tmp_path)
    run = measure(trial(workload, cache_key=cache_key, **fields), lambda _: lab)
    assert run.status == "ok", run.reason
    assert [repeat.caches["encoder_misses"] for repeat in run.repeats] == [misses] * 2
    assert [repeat.caches["encoder_hits"] for repeat in run.repeats] == [8 - misses] * 2


def test_images_in_hand_are_told_apart_whatever_their_items_are_called(trained, trial, six):
    """By identity: neither an equal id nor an equal question makes two images one."""
    first, second = [item for item in six.items if item.task in ("colour", "count")][:2]
    question = "What colour is the largest shape?"
    images = [Path(item.image).read_bytes() for item in (first, second)]
    workload = Workload("w", tuple(Item("q", image, question, "red") for image in images))
    seen: list[Any] = []
    real = trained.run

    class Lab:
        loaded, spec, clear_caches = trained.loaded, trained.spec, trained.clear_caches
        fast = trained.fast

        def run(self, items, *arguments, **options):
            seen.append([item.image for item in items])
            return real(items, *arguments, **options)

    run = measure(trial(workload, plan={"repeats": 1, "warmup": 0}), lambda _: Lab())
    assert run.status == "ok", run.reason
    assert seen == [images]


# ---- turns: quiet passes that last long enough


@pytest.fixture
def neighbours(monkeypatch) -> Callable[..., list[float]]:
    """Make up who else uses the machine, pass by pass; returns how long was waited."""

    def make(*cores: float) -> list[float]:
        seen = iter(cores)
        waited: list[float] = []

        class Made(contention.Monitor):
            def __exit__(self, *error):
                self.seen = contention.Contention(others_cores=next(seen), canary_s=0.001)

        monkeypatch.setattr("qvl_lab.bench.measure.Monitor", Made)
        monkeypatch.setattr("qvl_lab.bench.protocol.time.sleep", waited.append)
        return waited

    return make


def turn(trial: Trial, **parts: Any) -> Trial:
    return replace(trial, **{"round": 1, "gate": Gate()} | parts)


def test_a_turn_has_one_pass_and_its_round(lab, trial, neighbours):
    neighbours(0.0)
    run = measure(turn(trial()), lambda _: lab)
    (repeat,) = run.repeats
    assert (run.round, repeat.round, repeat.disturbed) == (1, 1, "")
    assert run.contention["thrown_away"] == 0


def test_a_disturbed_pass_is_thrown_away_and_counted(lab, trial, neighbours):
    waited = neighbours(1.0, 0.0)
    run = measure(turn(trial()), lambda _: lab)
    assert (run.status, len(run.repeats)) == ("ok", 1)
    assert run.contention["thrown_away"] == 1
    assert run.contention["reason"] == "other programs used 1.0 cores"
    assert len(waited) == 1


def test_a_machine_that_stays_busy_gives_no_number_and_says_what_to_do(lab, trial, neighbours):
    neighbours(*[1.0] * 4)
    run = measure(turn(trial()), lambda _: lab)
    assert (run.status, run.repeats) == ("busy", [])
    assert "not measurable here: other programs used 1.0 cores" in run.reason
    assert "--on-busy keep" in run.reason


def test_who_insists_gets_a_number_that_says_that_it_was_disturbed(lab, trial, neighbours):
    neighbours(*[1.0] * 4)
    run = measure(turn(trial(), insist=True), lambda _: lab)
    assert run.status == "ok"
    assert run.repeats[0].disturbed == "other programs used 1.0 cores"
    assert frame([run])["disturbed"].item()


@pytest.mark.slow
def test_a_pass_lasts_as_long_as_it_is_told(lab, trial):
    run = measure(turn(trial(plan={"min_pass_s": 4.0}), gate=None), lambda _: lab)
    (repeat,) = run.repeats
    assert repeat.calls > 1
    assert 4.0 <= repeat.wall_s < 8.0
    assert repeat.answered == 8 * repeat.calls
    assert len(repeat.batch_s) == 2 * repeat.calls
    assert repeat.disturbed is None


@pytest.mark.slow
def test_only_the_first_turn_is_scored(trained, trial, six):
    plan = {"repeats": 1}
    first = measure(turn(trial(six, plan=plan), round=0, gate=None), lambda _: trained)
    second = measure(turn(trial(six, plan=plan), round=1, gate=None), lambda _: trained)
    assert first.scores
    assert not second.scores


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "cut"), [(1, 6), (40, 0)])
def test_answers_that_end_at_the_limit_of_tokens_are_counted(trained, trial, six, limit, cut):
    run = measure(trial(six, max_new_tokens=limit, resolution=512), lambda _: trained)
    assert run.cut_answers == cut


def test_random_weights_always_end_at_the_limit_so_nobody_counts(lab, trial):
    assert measure(trial(), lambda _: lab).cut_answers is None
