"""A lab as its users hold it: shared by threads, listened to, closed."""

from __future__ import annotations

import random
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import qvl_lab as ql
from qvl_lab.errors import ConfigError
from qvl_lab.probe.stages import Recorder, listening, stage
from qvl_lab.workloads.sources import load_workload

SETTINGS: tuple[dict[str, Any], ...] = (
    {"engine": "fast", "batch_size": 3, "resolution": 64},
    {"engine": "fast", "batch_size": 3, "resolution": 96, "max_new_tokens": 6},
    {"engine": "fast", "batch_size": 2, "prefix_cache": True, "resolution": 64},
    {"engine": "stock", "batch_size": 2, "resolution": 96},
)


@dataclass(frozen=True)
class Call:
    """Some items and the settings that they are asked with."""

    items: tuple[Any, ...]
    options: dict[str, Any]

    def on(self, lab):
        return lab.generate_batch(list(self.items), **{"max_new_tokens": 4, **self.options})


def mixed_calls(requests, seed=0):
    """Calls of one to four items, by turns of every setting, with so many requests in all."""
    rng, calls = random.Random(seed), []
    pool = load_workload("mixed").items
    while requests:
        count = min(requests, rng.randint(1, 4))
        calls.append(Call(tuple(rng.sample(pool, count)), SETTINGS[len(calls) % len(SETTINGS)]))
        requests -= count
    return calls


def belongs_to(call, generation):
    """Whether a stage table counts the tokens of its own answers and images, and no others.

    An image whose prefix is known from a call before is not computed again.
    """
    totals = generation.totals
    known = generation.caches.get("prefix_hits", 0)
    return (
        [answer.id for answer in generation] == [item.id for item in call.items]
        and totals["detokenize"].amounts["tokens"] >= sum(a.new_tokens for a in generation)
        and generation.work.images == len(call.items) - known
        and sum(generation.stages_s.values()) == pytest.approx(generation.wall_s)
    )


def asked_by_threads(lab, calls, threads=8):
    """Every call's answers, asked by threads that start together."""
    together = threading.Barrier(threads)
    shares = [range(first, len(calls), threads) for first in range(threads)]

    def ask(share):
        together.wait()
        return [(index, calls[index].on(lab)) for index in share]

    with ThreadPoolExecutor(threads) as pool:
        return dict(pair for answered in pool.map(ask, shares) for pair in answered)


@pytest.mark.parametrize(
    "requests",
    [pytest.param(40, marks=pytest.mark.slow), pytest.param(200, marks=pytest.mark.full)],
)
def test_eight_threads_on_one_lab_get_the_answers_of_a_single_one(requests):
    lab = ql.load("random:tiny", precision="fp32", device="cpu")
    calls = mixed_calls(requests)
    alone = [call.on(lab) for call in calls]
    together = asked_by_threads(lab, calls)
    assert [together[i].texts for i in range(len(calls))] == [one.texts for one in alone]
    assert len({text for one in alone for text in one.texts}) > 5  # they do not all say the same
    assert all(belongs_to(call, together[i]) for i, call in enumerate(calls))
    for index, one in enumerate(alone):
        stages, own = set(together[index].totals), set(one.totals)
        assert stages == own if together[index].work.images else stages < own


@pytest.mark.slow
def test_a_profile_hears_the_calls_of_its_own_thread_alone(trained):
    calls = mixed_calls(32, seed=1)
    together = threading.Barrier(4)

    def profiled(share):
        together.wait()
        with ql.profile(trained, kernels=False, overhead=False) as profile:
            answered = [call.on(trained) for call in share]
        return profile, answered

    with ThreadPoolExecutor(4) as pool:
        for profile, answered in pool.map(profiled, (calls[i::4] for i in range(4))):
            assert profile.work.images == sum(one.work.images for one in answered)
            detokenized = profile.stages.set_index("path").loc["detokenize"]
            assert detokenized["calls"] == sum(o.totals["detokenize"].calls for o in answered)
            assert profile.profiled_s == pytest.approx(sum(one.wall_s for one in answered))


def test_a_recorder_hears_only_the_thread_that_subscribed_it():
    recorder = Recorder()
    with listening(recorder), ThreadPoolExecutor(1) as pool:

        def elsewhere():
            with stage("elsewhere"):
                pass

        pool.submit(elsewhere).result()
        with stage("here"):
            pass
    assert [span.path for span in recorder.spans()] == ["here"]


def test_on_answer_that_asks_the_same_lab_is_refused_and_the_lab_stays_usable(trained):
    call = mixed_calls(2)[0]
    engine, policy = (
        ql.Transformers(sampling=ql.SamplingParams(max_new_tokens=2)),
        ql.ImagePolicy(resolution=64),
    )
    with pytest.raises(ConfigError, match="on_answer must not use the lab"):
        trained.run(call.items, engine, policy, on_answer=lambda *_: call.on(trained))
    assert call.on(trained).errors == []


def test_several_questions_about_one_image_are_answered_in_order(trained):
    item = next(i for i in load_workload("evaluation").items if i.task == "colour")
    other = next(i for i in load_workload("evaluation").items if i.task == "count")
    image = Path(item.image)
    questions = [item.question, other.question]
    together = trained.generate_batch(image, questions, resolution=256)
    alone = [trained.generate_batch(image, q, resolution=256).texts[0] for q in questions]
    assert together.texts == alone
    assert together.texts == trained.generate_batch([image], [questions], resolution=256).texts
    assert [answer.id for answer in together] == [image.name, f"{image.name}#2"]


def test_an_image_that_is_no_file_says_so_and_a_url_is_not_fetched(trained):
    generation = trained.generate_batch(["no/such.png", "https://x.org/a.png"], "q")
    assert generation.texts == [None, None]
    missing, url = (answer.error for answer in generation)
    assert "No such file" in missing
    assert "is a URL, which is not read: download it" in url


@pytest.mark.slow
def test_a_lab_gives_its_model_back_when_it_is_closed():
    others = set(threading.enumerate())  # of labs that are still open
    with ql.load("random:tiny", device="cpu") as lab:
        call = mixed_calls(3)[0]
        for engine in ("fast", "stock"):
            assert Call(call.items, {"engine": engine, "resolution": 64}).on(lab).errors == []
        model, spec = weakref.ref(lab.loaded.model), lab.spec
    assert model() is None
    assert lab.closed
    assert lab.spec == spec
    assert repr(lab) == "<Lab random:tiny: closed>"
    with pytest.raises(ConfigError, match=r"'random:tiny' is closed; load the model again"):
        call.on(lab)
    with pytest.raises(ConfigError, match="is closed"):
        _ = lab.loaded
    lab.close()
    assert not hasattr(lab, "no_such_name")
    left = set(threading.enumerate()) - others
    assert [t.name for t in left if t.name.startswith("qvl-decode")] == []


def test_closing_waits_for_the_call_that_is_under_way_and_is_refused_within_it():
    lab = ql.load("random:tiny", device="cpu")
    under_way, (call, *_) = threading.Event(), mixed_calls(4)
    with ThreadPoolExecutor(1) as pool:
        refused = []

        def on_answer(*_):
            under_way.set()
            with pytest.raises(ConfigError, match="on_answer must not use the lab"):
                lab.close()
            refused.append(True)

        engine = ql.Transformers(sampling=ql.SamplingParams(max_new_tokens=8))
        policy = ql.ImagePolicy(resolution=64)
        running = pool.submit(lab.run, call.items, engine, policy, on_answer=on_answer)
        assert under_way.wait(30)
        lab.close()
        assert running.done() or running.result(5)
        assert running.result().errors == []
    assert refused
    assert lab.closed


@pytest.mark.slow
def test_labs_live_side_by_side_and_engines_alternate():
    with ql.load("tiny", device="cpu") as one, ql.load("random:tiny", device="cpu") as other:
        first = {}
        for _ in range(2):
            for lab in (one, other):
                for engine in ("fast", "stock"):
                    texts = (
                        Call(mixed_calls(3)[0].items, {"engine": engine, "resolution": 64})
                        .on(lab)
                        .texts
                    )
                    assert first.setdefault((lab, engine), texts) == texts
    assert one.closed
    assert other.closed


@pytest.mark.parametrize("engine", ["fast", "stock"])
def test_sampling_is_asked_for_by_name_on_both_backends(lab, engine):
    """Random weights, so that the next token is far from certain."""
    item = load_workload("mixed").items[0]
    options = {"engine": engine, "resolution": 64, "max_new_tokens": 6}

    def texts(**sampling):
        return lab.generate_batch([item] * 3, **options, **sampling).texts

    (greedy, *others) = texts()
    assert others == [greedy, greedy]
    assert texts(do_sample=False) == texts(top_k=1) == texts(temperature=1e-4) == [greedy] * 3
    assert len({*texts(temperature=5.0, top_p=1.0)}) == 3
    assert texts(temperature=5.0, seed=7) == texts(temperature=5.0, seed=7)
    assert texts(repetition_penalty=3.0) != texts()
    assert len({*texts(do_sample=True, temperature=5.0)}) == 3


@pytest.mark.parametrize(
    ("sampling", "complaint"),
    [
        ({"do_sample": False, "temperature": 0.7}, "ignores temperature; leave out one"),
        ({"temperature": 0}, "temperature must be over 0"),
        ({"top_p": 2.0}, "top_p must be over 0 and at most 1"),
        ({"temprature": 0.7}, "Did you mean 'temperature'"),
    ],
)
def test_sampling_that_cannot_be_done_is_refused(lab, sampling, complaint):
    with pytest.raises(ConfigError, match=complaint):
        lab.generate_batch(["a.png"], "q", **sampling)
