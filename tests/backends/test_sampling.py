"""Sampling parameters on both backends: penalties, seeds, and what they leave alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from qvl_lab.backends.fast.model_runner import ModelRunner
from qvl_lab.config.sampling import SamplingParams
from qvl_lab.errors import ConfigError
from qvl_lab.session import Lab

TOKENS = 10
#: So small a cache that sequences are preempted.
TIGHT_GIB = 1.2e-3
Ask = Callable[..., list[str]]


@pytest.fixture
def ask(trained: Lab, ids_of, monkeypatch) -> Ask:
    """Token ids of answers of the embedded model in fp32, for some items and sampling fields."""
    ids_of(trained)

    def ask(
        items: Any, engine: str, batch_size: int = 4, gib: float | None = None, **fields: Any
    ) -> list[str]:
        params = SamplingParams(max_new_tokens=TOKENS, min_new_tokens=TOKENS, **fields)
        monkeypatch.setattr(SamplingParams, "resolved", lambda *_, **__: params)
        settings: dict[str, Any] = {"engine": engine, "batch_size": batch_size}
        settings |= {} if gib is None else {"kv_cache_gib": gib}
        texts = trained.generate_batch(
            items, resolution=128, max_new_tokens=TOKENS, **settings
        ).texts
        assert None not in texts
        return texts

    return ask


# ---- repetition


@pytest.mark.slow
@pytest.mark.parametrize("penalty", [0.7, 1.2, 3.0])
def test_penalised_greedy_answers_are_those_of_transformers(ask, mixed, penalty):
    """Token for token; transformers one by one, since it penalises the padding of a batch too."""
    items = mixed[:6]
    expected = ask(items, "stock", batch_size=1, repetition_penalty=penalty)
    assert ask(items, "fast", repetition_penalty=penalty) == expected
    plain = ask(items, "fast")
    assert sum(a != b for a, b in zip(plain, expected, strict=True)) >= 3
    assert len(set(expected)) >= 3


def test_plain_greedy_steps_stay_those_that_are_recorded(ask, mixed, monkeypatch):
    """Only requests that sample or have a penalty leave the path of CUDA graphs."""
    decode, plains = ModelRunner.decode, []
    monkeypatch.setattr(
        ModelRunner, "decode", lambda self, s, plain: plains.append(plain) or decode(self, s, plain)
    )
    for fields, plain in [
        ({}, True),
        ({"temperature": 5.0, "top_k": 3, "seed": 1}, True),  # without do_sample
        ({"repetition_penalty": 1.5}, False),
        ({"do_sample": True}, False),
    ]:
        plains.clear()
        ask(mixed[:2], "fast", **fields)
        assert set(plains) == {plain}, fields


# ---- seeds


SAMPLED = {"do_sample": True, "temperature": 3.0}


@pytest.mark.slow
def test_a_seed_gives_a_request_the_same_answer_whatever_is_beside_it(ask, mixed):
    items = mixed[:6]
    expected = ask(items, "fast", seed=5, **SAMPLED)
    assert len(set(expected)) == 6
    for batch_size, order in [(1, [0, 1, 2, 3, 4, 5]), (3, [5, 2, 0, 4, 1, 3]), (6, [3])]:
        found = ask([items[i] for i in order], "fast", batch_size=batch_size, seed=5, **SAMPLED)
        assert found == [expected[i] for i in order]
    other = ask(items, "fast", seed=6, **SAMPLED)
    assert not set(other) & set(expected)


def test_a_preempted_request_goes_on_with_its_own_noise_and_penalty(ask, trained, mixed):
    """What it had generated is then part of the prompt that is read again."""
    items, fields = mixed[:6], {"seed": 5, "repetition_penalty": 1.3, **SAMPLED}
    expected = ask(items, "fast", batch_size=6, **fields)
    assert ask(items, "fast", batch_size=6, gib=TIGHT_GIB, **fields) == expected
    assert trained.fast.engine.scheduler.preemptions > 0


def test_a_seed_gives_a_batch_of_transformers_the_same_answers(ask, mixed):
    items = mixed[:4]
    first, again, other = (ask(items, "stock", seed=n, **SAMPLED) for n in (5, 5, 6))
    assert first == again
    assert not set(first) & set(other)


@pytest.mark.parametrize("engine", ["stock", "fast"])
def test_a_seed_leaves_torchs_random_state_as_it_was(ask, mixed, engine):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    ask(mixed[:2], engine, seed=5, **SAMPLED)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("engine", ["stock", "fast"])
def test_without_a_seed_answers_follow_torchs_random_state(ask, mixed, engine):
    found = []
    for state in (1, 1, 2):
        torch.manual_seed(state)
        found.append(ask(mixed[:2], engine, **SAMPLED))
    assert found[0] == found[1] != found[2]


# ---- how tokens are drawn


@pytest.mark.parametrize("engine", ["stock", "fast"])
@pytest.mark.parametrize("fields", [{"top_k": 1}, {"temperature": 1e-4}, {"top_p": 1e-6}], ids=str)
def test_drawing_from_one_token_is_greedy(ask, mixed, engine, fields):
    items = mixed[:3]
    assert ask(items, engine, do_sample=True, seed=1, **fields) == ask(items, engine)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"repetition_penalty": 0.0}, "repetition_penalty must be over 0"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty must be over 0"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty must be over 0"),
        ({"seed": -1}, "seed must be from 0"),
        ({"seed": 2**63}, "seed must be from 0"),
    ],
)
def test_values_out_of_bounds_are_refused(fields, words):
    with pytest.raises(ConfigError, match=words):
        SamplingParams(**fields)
