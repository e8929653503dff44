"""Rows of running sequences, and the choice of tokens beside that of transformers."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from qvl_lab.backends.fast.input_batch import (
    GENERATED,
    HEADER,
    LENGTH,
    OVERFLOW,
    POSITION,
    SEED,
    TOKEN,
    InputBatch,
    row_header,
)
from qvl_lab.backends.fast.sampling import penalised, sample, splitmix64, uniform
from qvl_lab.config import SamplingParams

VOCABULARY, SLOTS, WIDTH, NULL_BLOCK = 12, 3, 2, 99
STOP_TOKENS, SUPPRESSED = [4, 5], [6]
SAMPLINGS = [
    {},
    {"temperature": 0.4},
    {"temperature": 2.5, "top_k": 5},
    {"top_p": 0.7},
    {"temperature": 1.7, "top_k": 8, "top_p": 0.6},
    {"top_p": 1e-6},
    {"top_k": 100},
]


def transformers_probabilities(logits: Tensor, temperature=1.0, top_k=0, top_p=1.0) -> Tensor:
    """Probabilities that transformers samples with, of one row of logits."""
    row = TemperatureLogitsWarper(temperature)(None, logits[None])
    if top_k:
        row = TopKLogitsWarper(top_k)(None, row)
    if top_p < 1:
        row = TopPLogitsWarper(top_p)(None, row)
    return row.softmax(-1)[0]


def draws(logits: Tensor, times: int, temperature=1.0, top_k=0, top_p=1.0) -> Tensor:
    """How often each token is drawn."""
    temperature_top_p = torch.tensor([[temperature, top_p]]).expand(times, 2)
    seeds, step = torch.arange(times), torch.randint(100, ()).expand(times)
    noise = uniform(seeds, step)
    tokens = sample(logits.expand(times, -1), torch.full((times,), top_k), temperature_top_p, noise)
    return torch.bincount(tokens, minlength=len(logits))


# ---- drawing


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_tokens_are_drawn_as_often_as_transformers_probabilities_say(sampling):
    """A fair draw fails once in a million seeds, and this seed does not."""
    torch.manual_seed(0)
    logits, times = 2 * torch.randn(VOCABULARY), 20_000
    shares = transformers_probabilities(logits, **sampling).double()
    counts = draws(logits, times, **sampling)
    possible = shares > 0
    assert not counts[~possible].any()
    if possible.sum() > 1:
        expected = times * shares[possible] / shares.sum()
        assert chisquare(counts[possible], expected).pvalue > 1e-6


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_the_tokens_that_can_be_drawn_are_those_of_transformers(sampling):
    """Scores are nearly equal, so that every token with a chance is seen."""
    torch.manual_seed(1)
    for _ in range(3):
        logits = torch.rand(40) / 4
        possible = transformers_probabilities(logits, **sampling) > 0
        assert torch.equal(draws(logits, 4_000, **sampling) > 0, possible)


def test_rows_are_drawn_each_in_its_own_way():
    torch.manual_seed(2)
    logits = torch.randn(50, VOCABULARY)
    top_k = torch.tensor([1, 0] * 25)
    temperature_top_p = torch.tensor([[5.0, 1.0], [1e-3, 1.0]] * 25)
    assert torch.equal(sample(logits, top_k, temperature_top_p, torch.rand(50)), logits.argmax(-1))
    temperature_top_p[1::2] = torch.tensor([5.0, 1.0])
    tokens = sample(logits, top_k, temperature_top_p, torch.rand(50))
    assert torch.equal(tokens[::2], logits.argmax(-1)[::2])
    assert not torch.equal(tokens[1::2], logits.argmax(-1)[1::2])


def test_tokens_without_a_chance_are_never_drawn_from_a_large_vocabulary():
    torch.manual_seed(3)
    logits = torch.full((200, 20_000), -math.inf)
    logits[:, ::1000] = torch.randn(200, 20)
    for noise in (torch.rand(200), torch.zeros(200), torch.full((200,), 1 - 2**-24)):
        tokens = sample(logits, torch.zeros(200, dtype=torch.int64), torch.ones(200, 2), noise)
        assert not (tokens % 1000).any()


# ---- noise


def test_noise_is_that_of_splitmix64():
    """The first outputs for the seed 1234567, as published with the generator's reference code."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    seeds = torch.full((3,), 1234567)
    found = splitmix64(seeds, torch.arange(3)).tolist()
    assert [n % 2**64 for n in found] == published


@pytest.mark.parametrize("which", ["seeds", "steps", "both"])
def test_noise_is_uniform_over_seeds_and_over_steps(which):
    count, zeros = torch.arange(50_000), torch.zeros(50_000, dtype=torch.int64)
    pairs = {"seeds": (count, zeros), "steps": (zeros, count), "both": (count // 50, count % 50)}
    noise = uniform(*pairs[which])
    assert noise.min() >= 0
    assert noise.max() < 1
    assert chisquare(torch.histc(noise, 100, 0, 1)).pvalue > 1e-6
    after = torch.histc(noise[1:][noise[:-1] < 0.1], 10, 0, 1)  # neighbours are independent
    assert chisquare(after).pvalue > 1e-6


def test_noise_depends_on_its_own_row_alone():
    seeds = torch.tensor([5, 2**63 - 1, 0, 5])
    step = torch.tensor([3, 9, 0, 3])
    together = uniform(seeds, step)
    assert torch.equal(together, torch.cat([uniform(seeds[[i]], step[[i]]) for i in range(4)]))
    assert together[0] == together[3]
    assert len(together.unique()) == 3


# ---- repetition


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3, 5.0])
def test_repeated_tokens_are_penalised_as_transformers_does(penalty):
    torch.manual_seed(0)
    logits, ids = 3 * torch.randn(4, 50), torch.randint(50, (4, 20))
    logits[0, ids[0, 0]] = -math.inf
    seen = torch.zeros(4, 50, dtype=torch.bool).scatter_(1, ids, True)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone())
    assert torch.equal(penalised(logits, seen, torch.full((4, 1), penalty)), expected)


# ---- rows


class FakeModel:
    """Returns the logits it was made with, one row a sequence, and keeps what it was asked."""

    device = torch.device("cpu")

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    def decode(self, ids, position, length, block_table, cache) -> Tensor:
        self.asked = [t.clone() for t in (ids, position, length, block_table)]
        return self.logits[: len(ids)].clone()


def batch_with(logits: Tensor, samplings: list[SamplingParams]) -> InputBatch:
    """A batch whose slots 0, 1, ... hold sequences of 10, 11, ... tokens."""
    batch = InputBatch(FakeModel(logits), None, SLOTS, WIDTH, NULL_BLOCK, STOP_TOKENS, SUPPRESSED)
    rows = torch.arange(len(samplings))
    heads = [row_header(20 + i, 10 + i, 7 + i, 1, s) for i, s in enumerate(samplings)]
    state = torch.tensor([[*head, 30 + i, 40 + i] for i, head in enumerate(heads)])
    floats = [[s.temperature, s.top_p, s.repetition_penalty] for s in samplings]
    batch.add(rows, state, torch.tensor(floats))
    return batch


def logits_for(*best: int) -> Tensor:
    """Rows whose best tokens are these; the second best is token 0."""
    logits = torch.zeros(len(best), VOCABULARY)
    logits[:, 0] = 1
    logits[torch.arange(len(best)), list(best)] = 2
    return logits


def test_a_step_asks_for_the_rows_and_writes_them_back_in_place():
    batch = batch_with(logits_for(3, 8), [SamplingParams()] * 3)
    whole = batch._state
    before = whole.clone()
    assert batch.decode(torch.tensor([2, 0])).tolist() == [3, 8]
    ids, position, length, block_table = batch._model.asked
    assert ids.tolist() == [22, 20]
    assert position.tolist() == [9, 7]
    assert length.tolist() == [12, 10]
    assert block_table.tolist() == [[32, 42], [30, 40]]
    assert batch._state is whole
    assert whole[2].tolist()[:4] == [3, 13, 10, 2]
    assert whole[0].tolist()[:4] == [8, 11, 8, 2]
    assert torch.equal(whole[:, GENERATED + 1 :], before[:, GENERATED + 1 :])
    assert torch.equal(whole[[1, SLOTS]], before[[1, SLOTS]])


def test_the_first_token_is_chosen_where_the_prompt_ends():
    batch = batch_with(logits_for(3), [SamplingParams()] * 2)
    assert batch.first_tokens(logits_for(3), torch.tensor([1])).tolist() == [3]
    row = batch._state[1]
    assert (row[TOKEN], row[LENGTH], row[POSITION], row[GENERATED]) == (3, 11, 8, 2)


def test_blocks_are_replaced_and_looked_at_as_far_as_they_are_used():
    batch = batch_with(logits_for(3), [SamplingParams()])
    batch.set_block_table(torch.tensor([0]), torch.tensor([[71, 72]]))
    batch.used_blocks = 1
    batch.decode(torch.tensor([0]))
    assert batch._model.asked[3].tolist() == [[71]]
    assert batch._state[0, HEADER:].tolist() == [71, 72]


@pytest.mark.parametrize("sampled", [False, True])
def test_an_answer_stops_no_sooner_than_it_may(sampled):
    """One token is there already: with at least three, stop tokens are out twice."""
    sampling = SamplingParams(min_new_tokens=3, do_sample=sampled, top_k=1 if sampled else None)
    batch = batch_with(logits_for(STOP_TOKENS[1], STOP_TOKENS[0]), [sampling, SamplingParams()])
    step = batch.decode_sampled if sampled else batch.decode
    rows = torch.tensor([0, 1])
    found = [step(rows).tolist() for _ in range(4)]
    assert found == [[0, 4], [0, 4], [5, 4], [5, 4]]


@pytest.mark.parametrize("sampled", [False, True])
def test_suppressed_tokens_are_never_chosen(sampled):
    logits = torch.full((1, VOCABULARY), 1.0)
    logits[0, SUPPRESSED] = 50
    sampling = SamplingParams(do_sample=sampled, temperature=9.0)
    batch = batch_with(logits, [sampling])
    step = batch.decode_sampled if sampled else batch.decode
    torch.manual_seed(0)
    found = {step(torch.tensor([0])).item() for _ in range(300)}
    assert not found & set(SUPPRESSED)
    assert len(found) == (VOCABULARY - len(SUPPRESSED) if sampled else 1)


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_overflow_spoil_their_own_row_alone(sampled, bad):
    logits = logits_for(3, 8, 9)
    logits[1, 2] = bad
    batch = batch_with(logits, [SamplingParams(do_sample=sampled, top_k=1)] * 3)
    rows = torch.tensor([0, 1, 2])
    step = batch.decode_sampled if sampled else batch.decode
    assert step(rows).tolist() == [3, OVERFLOW, 9]
    assert batch._state[rows, TOKEN].tolist() == [3, 0, 9]  # the next step can embed them


def test_a_row_without_any_possible_token_is_an_overflow():
    batch = batch_with(torch.full((1, VOCABULARY), -math.inf), [SamplingParams()])
    assert batch.decode(torch.tensor([0])).tolist() == [OVERFLOW]


def test_nobodys_row_never_grows():
    batch = batch_with(logits_for(3, 8, 8, 8), [SamplingParams()])
    for _ in range(5):
        batch.decode(torch.tensor([0, SLOTS, SLOTS, SLOTS]))
    nobody = batch._state[SLOTS]
    assert (nobody[LENGTH], nobody[POSITION]) == (0, 0)
    assert nobody[HEADER:].tolist() == [NULL_BLOCK] * WIDTH
    assert batch._state[0, LENGTH] == 15


def test_greedy_cold_and_hot_rows_go_together():
    torch.manual_seed(0)
    hot, cold = (SamplingParams(do_sample=True, temperature=t) for t in (50.0, 1e-3))
    batch = batch_with(logits_for(3, 3, 3), [SamplingParams(), hot, cold])
    found = [batch.decode_sampled(torch.tensor([2, 0, 1])).tolist() for _ in range(40)]
    tokens = [set(row) for row in zip(*found, strict=True)]
    assert tokens[:2] == [{3}, {3}]
    assert len(tokens[2]) > 5


def test_a_penalty_counts_the_prompt_and_what_was_chosen_and_spares_other_rows():
    """Token 3 has 2.0, token 0 has 1.0, all others 0: divided by 4, a token loses to the next."""
    logits = logits_for(3, 3)
    batch = batch_with(logits, [SamplingParams(repetition_penalty=4.0), SamplingParams()])
    batch.penalise(0, torch.tensor([1, 1, 9]), VOCABULARY)
    found = [batch.decode_sampled(torch.tensor([0, 1])).tolist() for _ in range(3)]
    assert found == [[3, 3], [0, 3], [3, 3]]  # 2.0, then 1.0 beside 0.5, then 0.5 beside 0.25
    assert batch._seen[0].nonzero()[:, 0].tolist() == [0, 1, 3, 9]
    batch.penalise(0, torch.tensor([2]), VOCABULARY)  # the next sequence in this slot
    assert batch._seen[0].nonzero()[:, 0].tolist() == [2]


def test_a_seed_gives_the_same_tokens_in_any_slot_beside_any_other():
    """Also after tokens were generated elsewhere: the noise goes by how many there are."""
    logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(0)).expand(3, -1)
    one, other = (SamplingParams(do_sample=True, temperature=2.0, seed=seed) for seed in (11, 12))
    alone = batch_with(logits, [one])
    expected = [alone.decode_sampled(torch.tensor([0])).item() for _ in range(30)]
    beside = batch_with(logits, [other, SamplingParams(), one])
    rows = torch.tensor([2, 0, 1])
    found = [beside.decode_sampled(rows).tolist() for _ in range(30)]
    assert [tokens[0] for tokens in found] == expected
    assert [tokens[1] for tokens in found] != expected
    assert len(set(expected)) > 3


def test_without_a_seed_torchs_random_state_gives_one():
    sampling, seeds = SamplingParams(do_sample=True), []
    for state in (1, 1, 2):
        torch.manual_seed(state)
        seeds.append(row_header(0, 0, 0, 0, sampling)[SEED])
    assert seeds[0] == seeds[1] != seeds[2]


@pytest.mark.parametrize(
    ("sampling", "top_k"),
    [({}, -1), ({"do_sample": True}, 0), ({"do_sample": True, "top_k": 7}, 7), ({"top_k": 7}, -1)],
)
def test_a_row_says_how_its_tokens_are_chosen(sampling, top_k):
    row = row_header(1, 2, 3, 4, SamplingParams(min_new_tokens=5, **sampling))
    assert row[:SEED] == [1, 2, 3, 4, 5, top_k]
    assert len(row) == HEADER
