"""Train the embedded model from scratch: ``python training/train_tiny.py --out FOLDER``.

One GPU, fifteen minutes, fixed seeds, deterministic algorithms. Four ideas make it short:

1. Dense targets first. For each visual token the vision tower is told which shape of which colour
   covers it, where that shape's box lies, and which character of the printed text has its centre
   there, by its place in the text: "the third character is a 7". The heads that read this off the
   tower's output are thrown away afterwards.
2. Sheets of labels, for dense targets alone: a dozen texts to read in one picture.
3. Then question and answer, nine turns on every image. The turns share the image's tokens, but see
   neither each other nor each other's positions, so each is trained as if asked alone.
4. Two attention heads of one layer are told where to look while they learn: at the shape that the
   question names, at the character that comes next.

New pictures are drawn while training goes on (:class:`bank.Supply`); a step picks from those on the
GPU, at one of the resolutions that the model shall know. Weights are written as bf16 safetensors
beside a copy of the embedded model's other files.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bank import (
    ASSETS,
    CHARACTERS,
    HUNDREDS,
    LONG_TOKENS,
    MOST_CHARACTERS,
    NOWHERE,
    SHORT_TOKENS,
    TURNS,
    Bank,
    Supply,
    encode,
)
from safetensors.torch import save_file
from scenes import COLOURS, SHAPES
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionAttention
from transformers.vision_utils import (
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
)

from qvl_lab.workloads.resize import PixelLimits, target_size

#: Sides of the pixel budget and how often each is trained on after the first steps.
RESOLUTIONS = {512: 8, 448: 1, 384: 2, 320: 1, 256: 2, 192: 1, 128: 1, 96: 1, 64: 1}
BATCH = {512: 64, 448: 64, 384: 80, 320: 80}  # images a step; smaller ones: 96
DENSE_FROM = 384  # below, most of the print cannot be told
#: Which kind of picture a step is of, in turn: while there are dense targets alone, and then.
DENSE_KINDS = ("scene", "sheet", "receipt", "sheet", "scene")
TALK_KINDS = ("scene", "scene", "receipt", "scene", "sheet")
LOOKING_LAYER, LOOKING_HEADS = 3, 2


# ---- the model's two halves, over images of one size


class Student:
    """The model in training, with the heads for dense targets."""

    def __init__(self, device: str, seed: int) -> None:
        torch.manual_seed(seed)
        config = AutoConfig.from_pretrained(ASSETS)
        self.model = Qwen3VLForConditionalGeneration(config).to(device).train()
        self.config, self.device = config, device
        hidden = config.text_config.hidden_size
        outputs = {
            "form": 1 + len(SHAPES),
            "colour": 1 + len(COLOURS),
            "hundreds": 4 * 11,
            "tens": 4 * 10,
            "characters": MOST_CHARACTERS * (1 + len(CHARACTERS)),
        }
        heads = {name: nn.Linear(hidden, size) for name, size in outputs.items()}
        self.heads = nn.ModuleDict(heads).to(device)
        for block in self.model.model.visual.blocks:
            block.attn.__class__ = _OneCall
        layer = self.model.model.language_model.layers[LOOKING_LAYER].self_attn
        layer.register_forward_pre_hook(self._remember, with_kwargs=True)
        self._looking: Any = None
        self.start = encode("<|im_start|>user\n<|vision_start|>").ids
        end = encode("<|vision_end|>").ids
        self._template = torch.tensor([[*self.start, *end]], device=device)

    def compile(self) -> None:
        """Compile what repeats: the tower's blocks and the decoder's layers."""
        torch._dynamo.config.recompile_limit = 64
        for block in self.model.model.visual.blocks:
            block.compile(dynamic=True)
        for i, layer in enumerate(self.model.model.language_model.layers):
            if i != LOOKING_LAYER:
                layer.compile(dynamic=True)

    def see(self, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Pixels (batch, 3, height, width) in -1..1 to features (batch * tokens, hidden).

        transformers' vision tower, for images of one size: positions are worked out once for
        all, attention is one call.
        """
        tower = self.model.model.visual
        batch, _, height, width = pixels.shape
        h, w = height // 16, width // 16
        x = pixels.view(batch, 3, h // 2, 2, 16, w // 2, 2, 16)
        # (image, token row, token column, row and column in the token, channel, y, x)
        patches = x.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(batch, h * w, -1)
        plan = _tower_plan(h, w, self.device)
        x = _embed(tower.patch_embed.proj, patches)
        positions = (tower.pos_embed(plan.corners) * plan.shares[:, :, None]).sum(1)
        x = x + positions.to(x.dtype)
        angles = tower.rotary_pos_emb(x, plan.positions)
        deep = []
        for i, block in enumerate(tower.blocks):
            x = block(x, cu_seqlens=None, position_embeddings=angles)
            if i in tower.deepstack_visual_indexes:
                merger = tower.deepstack_merger_list[tower.deepstack_visual_indexes.index(i)]
                deep.append(merger(x.flatten(0, 1)))
        return tower.merger(x.flatten(0, 1)), deep

    def dense_loss(
        self, features: Tensor, bank: Bank, picks: Tensor, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Losses of shapes and of characters: how well features tell :func:`dense_targets`."""
        goal = dense_targets(bank.shapes[picks], bank.characters[picks], grid)
        said = {name: head(features.float()) for name, head in self.heads.items()}

        def losses(name: str) -> Tensor:  # shaped as the goal
            logits = said[name].view(*goal[name].shape, -1)
            flat = functional.cross_entropy(
                logits.flatten(0, -2), goal[name].flatten(), reduction="none"
            )
            return flat.view(goal[name].shape)

        covered, here = goal["form"] > 0, goal["characters"] > 0
        shapes = losses("form").mean() + losses("colour").mean()
        for name in ("hundreds", "tens"):
            shapes = shapes + 0.5 * _mean(losses(name).mean(-1), covered)
        characters = losses("characters")
        return shapes, _mean(characters, here) + 4 * _mean(characters, ~here)

    def talk_loss(
        self, features: Tensor, deep: list[Tensor], bank: Bank, picks: Tensor, grid: tuple[int, int]
    ) -> Talk:
        """Cross-entropy of the answers, given the features of ``picks``."""
        ids, weight, look = turns(bank, picks)
        counts = bank.long.ids.shape[1], bank.short.ids.shape[1]
        plan = _plan(len(self.start), grid, *counts, self.device)
        hidden = self.decode(ids, features, deep, plan)[:, plan.first_turn :]
        logits, goal = self.model.lm_head(hidden).float(), ids.roll(-1, 1)
        following = functional.pad(weight[:, 1:], (0, 1)).float()
        losses = functional.cross_entropy(logits.flatten(0, 1), goal.flatten(), reduction="none")
        return Talk(
            loss=(losses * following.flatten()).sum() / following.sum(),
            look=self._look_loss(bank, picks, look.roll(-1, 1), plan, grid),
            missed=(logits.argmax(-1) != goal) & (following > 0),
            weight=following,
            turns=counts,
        )

    def decode(self, ids: Tensor, features: Tensor, deep: list[Tensor], plan: Plan) -> Tensor:
        """transformers' decoder over template, image and turns (batch, turn tokens)."""
        decoder = self.model.model.language_model
        before, after = len(self.start), plan.first_turn - 1
        template = decoder.embed_tokens(self._template).expand(len(ids), -1, -1)
        image = features.view(len(ids), after - before, -1).to(template.dtype)
        words = [template[:, :before], image, template[:, before:], decoder.embed_tokens(ids)]
        x = torch.cat(words, 1)
        angles = decoder.rotary_emb(x, plan.positions[:, None].expand(3, len(ids), -1))
        for i, layer in enumerate(decoder.layers):
            x = layer(x, attention_mask=plan.mask[None, None], position_embeddings=angles)
            if i < len(deep):
                image = x[:, before:after] + deep[i].view(image.shape)
                x = torch.cat([x[:, :before], image, x[:, after:]], 1)
        out: Tensor = decoder.norm(x)
        return out

    def losses(self, bank: Bank, picks: Tensor, side: int, talking: bool) -> dict[str, Tensor]:
        """Every loss of a step and ``all``, their sum."""
        x = pixels(bank, picks, side, noisy=True)
        grid = x.shape[2] // 32, x.shape[3] // 32
        losses: dict[str, Tensor] = {}
        with torch.autocast(self.device, torch.bfloat16):
            features, deep = self.see(x)
            if talking and bank.short.ids.shape[1]:
                talk = self.talk_loss(features, deep, bank, picks, grid)
                losses = {"talk": talk.loss, "look": 0.5 * talk.look}
        if side >= DENSE_FROM:
            shapes, characters = self.dense_loss(features, bank, picks, grid)
            losses["shapes"] = (0.3 if talking else 1.0) * shapes
            losses["characters"] = (0.6 if talking else 1.0) * characters
        return losses | {"all": torch.stack(list(losses.values())).sum()}

    def _look_loss(
        self, bank: Bank, picks: Tensor, look: Tensor, plan: Plan, grid: tuple[int, int]
    ) -> Tensor:
        """How far the looking heads are from attending to where the next token is to be found."""
        shapes, characters = _covers(bank.shapes[picks], bank.characters[picks], grid)
        nowhere = torch.zeros_like(shapes[..., :1])
        covers = torch.cat([nowhere, shapes, characters], -1).transpose(1, 2)  # (batch, 13, tokens)
        goal = covers.gather(1, look[..., None].expand(-1, -1, covers.shape[2]))
        layer = self.model.model.language_model.layers[LOOKING_LAYER].self_attn
        states, angles = self._looking
        attended = _attended(layer, states, angles, plan)
        image = slice(len(self.start), len(self.start) + grid[0] * grid[1])
        share = (attended[..., image] * goal[:, None]).sum(-1)  # (batch, heads, turn tokens)
        return _mean(-(share + 1e-6).log().mean(1), (look != NOWHERE) & goal.any(-1))

    def _remember(self, _: Any, args: Any, kwargs: Any) -> None:
        states = kwargs.get("hidden_states", args[0] if args else None)
        self._looking = states, kwargs["position_embeddings"]


@dataclass(frozen=True)
class Talk:
    """Losses of a batch of turns; ``missed`` and ``weight`` are (batch, tokens of all turns)."""

    loss: Tensor
    look: Tensor
    missed: Tensor
    weight: Tensor
    turns: tuple[int, int]

    @property
    def short_right(self) -> Tensor:
        """Whether every token of a short turn came out right, (batch, turns)."""
        missed = self.missed[:, self.turns[0] * LONG_TOKENS :]
        return ~missed.reshape(len(missed), self.turns[1], SHORT_TOKENS).any(-1)

    @property
    def hundreds_right(self) -> Tensor:
        """The share of boxes' first digits that came out right."""
        return 1 - self.missed[self.weight == HUNDREDS].float().mean()


def turns(bank: Bank, picks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, weights and where to look, each (batch, tokens of all turns), long turns first."""
    pairs = zip(vars(bank.long).values(), vars(bank.short).values(), strict=True)
    ids, weight, look = (
        torch.cat([long[picks].flatten(1), short[picks].flatten(1)], 1).long()
        for long, short in pairs
    )
    return ids, weight, look


def _mean(values: Tensor, wanted: Tensor) -> Tensor:
    """The mean of the wanted values, 0 if there are none, at no size that depends on them."""
    return (values * wanted).sum() / wanted.sum().clamp(min=1)


def _attended(layer: Any, states: Tensor, angles: tuple[Tensor, Tensor], plan: Plan) -> Tensor:
    """Attention of the looking heads from all turns' tokens, (batch, heads, tokens, length)."""
    from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb

    shape = (*states.shape[:-1], -1, layer.head_dim)
    q = layer.q_norm(layer.q_proj(states).view(shape))[:, :, :LOOKING_HEADS].transpose(1, 2)
    k = layer.k_norm(layer.k_proj(states).view(shape)).transpose(1, 2)
    q, k = apply_rotary_pos_emb(q, k, *angles)
    k = k.repeat_interleave(layer.num_key_value_groups, 1)[:, :LOOKING_HEADS]
    scores: Tensor = (q[:, :, plan.first_turn :] @ k.transpose(2, 3) * layer.scaling).float()
    return scores.masked_fill(~plan.mask[plan.first_turn :], float("-inf")).softmax(-1)


def _embed(convolution: Any, patches: Tensor) -> Tensor:
    """The patch embedding as the matrix product it is, which is far faster than a convolution.

    Both frames of a still picture are the same, so their weights add up.
    """
    weight = convolution.weight.sum(2).flatten(1)
    return functional.linear(patches, weight, convolution.bias)


class _OneCall(Qwen3VLVisionAttention):  # type: ignore[misc]
    """The tower's attention over (batch, patches, hidden); transformers' own is one by one."""

    def forward(self, x: Tensor, position_embeddings: Any, **_: Any) -> Any:  # type: ignore[override]
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        cos, sin = (angle[:, None].to(v.dtype) for angle in position_embeddings)
        q, k, v = (t.transpose(1, 2) for t in (_turned(q, cos, sin), _turned(k, cos, sin), v))
        out = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).flatten(2))


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat([-right, left], -1) * sin


@dataclass(frozen=True)
class TowerPlan:
    """Where the patches of a picture lie.

    Attributes
    ----------
    corners, shares : (patches, 4)
        Which learned positions to mix, and how much of each.
    positions : (patches, 2)
        Row and column.
    """

    corners: Tensor
    shares: Tensor
    positions: Tensor


@cache
def _tower_plan(h: int, w: int, device: str) -> TowerPlan:
    config = AutoConfig.from_pretrained(ASSETS).vision_config
    merge = config.spatial_merge_size
    grid = torch.tensor([[1, h, w]], device=device)
    corners, shares = get_vision_interpolation_indices_and_weights(
        grid,
        num_grid_per_side=math.isqrt(config.num_position_embeddings),
        mode="bilinear",
        align_corners=True,
        spatial_merge_size=merge,
    )
    return TowerPlan(corners, shares, get_vision_position_ids(grid, merge))


def _covers(shapes: Tensor, characters: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Whether a shape covers a token's centre, a character's centre lies in it.

    (pictures, tokens, 6) for the shapes, (pictures, tokens, 6 * texts) for the places of the texts.
    """
    h, w = grid
    y = ((torch.arange(h, device=shapes.device) + 0.5) / h).repeat_interleave(w)[None, :, None]
    x = ((torch.arange(w, device=shapes.device) + 0.5) / w).repeat(h)[None, :, None]
    left, top, right, bottom = (shapes[:, None, :, i] for i in range(2, 6))
    # a little wider, so that small shapes at low resolution cover a centre too
    inside = (x > left - 0.2 / w) & (x < right + 0.2 / w)
    inside &= (y > top - 0.2 / h) & (y < bottom + 0.2 / h) & (shapes[:, None, :, 0] > 0)
    home = (characters[..., 2] * h).long() * w + (characters[..., 1] * w).long()
    token = torch.arange(h * w, device=shapes.device)[None, :, None]
    return inside, (token == home[:, None]) & (characters[:, None, :, 0] > 0)


def dense_targets(shapes: Tensor, characters: Tensor, grid: tuple[int, int]) -> dict[str, Tensor]:
    """What each visual token should know, flattened over pictures and tokens.

    ``form`` and ``colour`` (tokens,) of the shape over the token's centre; ``hundreds`` and
    ``tens`` (tokens, 4), the digits of its box in thousandths; ``characters`` (tokens, 6), for
    each place in a text the character whose centre lies in the token. 0 is none.
    """
    inside, there = _covers(shapes, characters, grid)
    owner = inside.float().argmax(-1)  # (pictures, tokens)
    mine = torch.gather(shapes, 1, owner[..., None].expand(-1, -1, 6))
    mine = mine * inside.any(-1, keepdim=True)
    here = characters[:, None, :, 0].long() * there  # (pictures, tokens, 6 * texts)
    thousandths = (mine[..., 2:] * 1000).round().long().flatten(0, 1)
    return {
        "form": mine[..., 0].long().flatten(),
        "colour": mine[..., 1].long().flatten(),
        "hundreds": thousandths // 100,
        "tens": thousandths // 10 % 10,
        "characters": here.view(*here.shape[:2], -1, MOST_CHARACTERS).amax(2).flatten(0, 1),
    }


@dataclass
class Plan:
    """Where the tokens of a sequence stand: positions (3, length), mask (length, length)."""

    positions: Tensor
    mask: Tensor
    first_turn: int


@cache
def _plan(start: int, grid: tuple[int, int], long: int, short: int, device: str) -> Plan:
    """Each turn follows the image as if it were the only one."""
    h, w = grid
    n = h * w
    widths = [LONG_TOKENS] * long + [SHORT_TOKENS] * short
    first_turn = start + n + 1
    positions = torch.arange(start).expand(3, -1)
    rows, columns = torch.arange(h).repeat_interleave(w), torch.arange(w).repeat(h)
    image = start + torch.stack([torch.zeros(n, dtype=torch.long), rows, columns])
    after = start + max(h, w)
    turns = [torch.arange(width).expand(3, -1) + after + 1 for width in widths]
    positions = torch.cat([positions, image, torch.full((3, 1), after), *turns], 1)
    turn = torch.cat(
        [torch.zeros(first_turn), *(torch.full((t,), i + 1.0) for i, t in enumerate(widths))]
    )
    mask = (turn[None] == 0) | (turn[None] == turn[:, None])
    return Plan(positions.to(device), mask.tril().to(device), first_turn)


# ---- pixels


def pixels(bank: Bank, picks: Tensor, side: int, noisy: bool = False) -> Tensor:
    """Pictures at a pixel budget of ``side`` squared, (batch, 3, height, width) in -1..1."""
    x: Tensor = bank.images[picks].permute(0, 3, 1, 2).float()
    height, width = x.shape[2:]
    w, h = target_size((width, height), side, PixelLimits(min_pixels=4096))
    if (h, w) != (height, width):  # what PIL does, which resizes at inference
        x = functional.interpolate(x, (h, w), mode="bicubic", antialias=True, align_corners=False)
        x = x.round().clamp(0, 255)
    x = x / 127.5 - 1
    if noisy:
        x = x + 0.03 * torch.rand_like(x[:, :1, :1, :1]) * torch.randn_like(x)
    return x


# ---- training


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long: steps in all, of dense targets alone, at 512 px alone, between new pictures."""

    steps: int
    dense_steps: int
    full_size_steps: int
    round_steps: int = 1500
    learning_rate: float = 1e-3
    warmup: int = 150

    def rate(self, step: int) -> float:
        """Linear warm-up, again when the answers begin; constant to 45%, then cosine to 2%."""
        begun = step if step < self.dense_steps else step - self.dense_steps
        done = max(0.0, step / self.steps - 0.45) / 0.55
        fall = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))
        return self.learning_rate * min(1.0, (begun + 1) / self.warmup) * fall

    def kind(self, step: int) -> str:
        """The kind of picture of a step."""
        kinds = TALK_KINDS if step >= self.dense_steps else DENSE_KINDS
        return kinds[step % len(kinds)]

    def side(self, step: int, rng: np.random.Generator) -> int:
        """The resolution of a step; sheets have no questions, and are not shown too small."""
        sides, odds = list(RESOLUTIONS), np.array(list(RESOLUTIONS.values()), float)
        drawn = int(rng.choice(sides, p=odds / odds.sum()))
        if step < self.full_size_steps or (self.kind(step) == "sheet" and drawn < DENSE_FROM):
            return 512
        return drawn


class Gradients:
    """Loss and gradients of a step.

    On a GPU every kind of step is recorded once as a CUDA graph and replayed with other picks: a
    model as small as this leaves a GPU waiting for launches otherwise. A graph reads and writes
    where it did when it was recorded, so banks, weights and gradients stay in their places.
    """

    def __init__(self, student: Student, graphs: bool) -> None:
        self._student, self._graphs = student, graphs
        self._recorded: dict[tuple[Any, ...], Any] = {}
        self._pool: Any = None
        self.weights = [*student.model.parameters(), *student.heads.parameters()]
        for weight in self.weights:
            weight.grad = torch.zeros_like(weight)

    def __call__(self, bank: Bank, picks: Tensor, *kind: Any) -> dict[str, Tensor]:
        """Losses of :meth:`Student.losses`; gradients lie in the weights afterwards."""
        if not self._graphs:
            return self._run(bank, picks, *kind)
        key = (id(bank), len(picks), *kind)
        if key not in self._recorded:
            self._recorded[key] = self._record(bank, picks.clone(), *kind)
        graph, places, losses = self._recorded[key]
        places.copy_(picks)
        graph.replay()
        return dict(losses)

    def _run(self, bank: Bank, picks: Tensor, *kind: Any) -> dict[str, Tensor]:
        torch._foreach_zero_([weight.grad for weight in self.weights])
        losses = self._student.losses(bank, picks, *kind)
        losses["all"].backward()  # type: ignore[no-untyped-call]
        return {name: loss.detach() for name, loss in losses.items()}

    def _record(self, bank: Bank, picks: Tensor, *kind: Any) -> Any:
        for _ in range(2):  # compiles, fills caches
            self._run(bank, picks, *kind)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, self._pool, torch.cuda.current_stream()):
            losses = self._run(bank, picks, *kind)
        return graph, picks, losses


def train(
    student: Student,
    supply: Supply,
    held_out: dict[str, Bank],
    schedule: Schedule,
    seed: int,
    graphs: bool,
    out: Path,
) -> None:
    """All steps; prints the losses, and the share of right answers on pictures held out."""
    gradients = Gradients(student, graphs and student.device == "cuda")
    optimizer = torch.optim.AdamW(
        gradients.weights,
        lr=1e-3,
        betas=(0.9, 0.98),
        weight_decay=0.02,
        fused=student.device == "cuda",
    )
    rng = np.random.default_rng(seed)
    started = time.perf_counter()
    for step in range(schedule.steps):
        if step % schedule.round_steps == 0:
            banks = supply.next(student.device, last=step + schedule.round_steps >= schedule.steps)
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        kind, side = schedule.kind(step), schedule.side(step, rng)
        drawn = rng.integers(0, len(banks[kind]), min(BATCH.get(side, 96), len(banks[kind])))
        picks = torch.from_numpy(drawn).to(student.device)
        losses = gradients(banks[kind], picks, side, step >= schedule.dense_steps)
        nn.utils.clip_grad_norm_(gradients.weights, 1.0)
        optimizer.step()
        if step % 250 in (0, 1, 2):
            values = " ".join(f"{name} {value.item():.3f}" for name, value in losses.items())
            seconds = time.perf_counter() - started
            print(f"{step + 1} {seconds:.0f} s {side} px {kind}: {values}", flush=True)
        if (step + 1) % 2000 == 0 or step + 1 == schedule.steps:
            print(examine(student, held_out), flush=True)
            save(student, out)


@torch.no_grad()
def examine(student: Student, held_out: dict[str, Bank], side: int = 512) -> str:
    """The share of turns whose every token would be right, by task, in words."""
    right: dict[str, list[float]] = {}
    for kind, bank in held_out.items():
        tasks = TURNS[kind][1]
        for start in range(0, len(bank), 64):
            picks = torch.arange(start, min(start + 64, len(bank)), device=student.device)
            x = pixels(bank, picks, side)
            grid = x.shape[2] // 32, x.shape[3] // 32
            with torch.autocast(student.device, torch.bfloat16):
                talk = student.talk_loss(*student.see(x), bank, picks, grid)
            if kind == "scene":
                right.setdefault("hundreds", []).append(talk.hundreds_right.item())
            for k, task in enumerate(tasks):
                right.setdefault(task, []).append(talk.short_right[:, k].float().mean().item())
    return ", ".join(f"{task} {np.mean(values):.3f}" for task, values in right.items())


def save(student: Student, out: Path) -> None:
    """Weights in bf16 and the files beside them; tied weights are written once."""
    out.mkdir(parents=True, exist_ok=True)
    for file in ASSETS.iterdir():
        if file.suffix in (".json", ".jinja") and file.parent != out.resolve():
            shutil.copy(file, out / file.name)
    state = student.model.state_dict()
    tied = {"lm_head.weight"} if student.config.tie_word_embeddings else set()
    kept = {k: v.to(torch.bfloat16).contiguous().cpu() for k, v in state.items() if k not in tied}
    save_file(kept, out / "model.safetensors", metadata={"format": "pt"})


def _side_stream(device: str) -> Any:
    """Where graphs may be recorded, which the default stream is not."""
    if device != "cuda":
        return nullcontext()
    torch.cuda.synchronize()
    return torch.cuda.stream(torch.cuda.Stream())  # type: ignore[no-untyped-call]


def _steps(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder for the model's files")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=20_000, help="a round")
    parser.add_argument("--sheets", type=int, default=8_000, help="a round")
    parser.add_argument("--receipts", type=int, default=5_000, help="a round")
    parser.add_argument(
        "--steps", type=_steps, default=(16_000, 6500, 11_000), help="all,dense,512 px"
    )
    parser.add_argument("--round-steps", type=int, default=1500, help="steps between new pictures")
    parser.add_argument(
        "--graphs",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="CUDA graphs: faster, the same result",
    )
    args = parser.parse_args()
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # what deterministic cuBLAS asks for
    torch.use_deterministic_algorithms(True)
    started = time.perf_counter()
    counts = {"scene": args.scenes, "receipt": args.receipts, "sheet": args.sheets}
    supply = Supply(counts, args.seed)
    # held out: the same purpose, another seed; the evaluation set is of the other purpose
    asked = {"scene": min(256, args.scenes), "receipt": min(256, args.receipts)}
    held_out = Supply(asked, args.seed + 1).next(args.device, last=True)
    student = Student(args.device, args.seed)
    if args.device == "cuda":
        student.compile()
    total = sum(p.numel() for p in student.model.parameters())
    print(f"{total / 1e6:.2f} M parameters, {time.perf_counter() - started:.0f} s", flush=True)
    steps, dense, full = args.steps
    schedule = Schedule(
        steps=steps, dense_steps=dense, full_size_steps=full, round_steps=args.round_steps
    )
    with _side_stream(args.device):
        train(student, supply, held_out, schedule, args.seed, args.graphs, args.out)
    print(f"all: {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
