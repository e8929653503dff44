"""Train the embedded model from scratch: ``python training/train_tiny.py --out FOLDER``.

One GPU, about ten minutes, fixed seeds. Three ideas make it short:

1. Dense targets first. For each visual token the vision tower is told which shape of which colour
   covers it, where that shape's box lies, and which character of the printed text has its centre
   there, by its place in the text: "the third character is a 7". The heads that read this off the
   tower's output are thrown away afterwards.
2. Then question and answer, nine turns on every image. The turns share the image's tokens, but see
   neither each other nor each other's positions, so each is trained as if asked alone.
3. Two attention heads of one layer are told where to look while they learn: at the shape that the
   question names, at the character that comes next.

Every picture is drawn before training and stays on the GPU; a step picks from there, at one of the
resolutions that the model shall know. Weights are written as bf16 safetensors beside a copy of the
embedded model's other files.
"""

from __future__ import annotations

import argparse
import math
import shutil
import time
from dataclasses import dataclass
from functools import cache, partial
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
    RECEIPT_SHORT,
    SHORT,
    SHORT_TOKENS,
    Bank,
    draw,
    encode,
)
from safetensors.torch import save_file
from scenes import COLOURS, PURPOSES, SHAPES
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, Qwen3VLForConditionalGeneration

from qvl_lab.engine.images import PixelLimits, target_size

#: Sides of the pixel budget and how often each is trained on after the first steps.
RESOLUTIONS = {512: 8, 448: 1, 384: 2, 320: 1, 256: 2, 192: 1, 128: 1, 96: 1, 64: 1}
BATCH = {512: 64, 448: 64, 384: 80, 320: 80}  # images a step; smaller ones: 96
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
        self.images = 1
        embed = self.model.model.visual.patch_embed
        embed.forward = partial(_embed, embed)
        for block in self.model.model.visual.blocks:
            block.attn.forward = partial(_attention, self, block.attn)
        layer = self.model.model.language_model.layers[LOOKING_LAYER].self_attn
        layer.register_forward_pre_hook(self._remember, with_kwargs=True)
        self._looking: Any = None
        self.start = encode("<|im_start|>user\n<|vision_start|>").ids
        self.end = encode("<|vision_end|>").ids

    def see(self, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Pixels (batch, 3, height, width) in -1..1 to features (batch * tokens, hidden)."""
        batch, _, height, width = pixels.shape
        h, w = height // 16, width // 16
        x = pixels.view(batch, 1, 3, h // 2, 2, 16, w // 2, 2, 16).expand(-1, 2, *[-1] * 7)
        # (image, token row, token column, row and column in the token, channel, frame, y, x)
        patches = x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(batch * h * w, -1)
        grid = torch.tensor([[1, h, w]] * batch, device=self.device)
        self.images = batch
        out = self.model.model.visual(patches, grid_thw=grid)
        return out.pooler_output, out.deepstack_features

    def dense_loss(
        self, features: Tensor, bank: Bank, picks: Tensor, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Losses of shapes and of characters: how well features tell :func:`dense_targets`."""
        goal = dense_targets(bank.shapes[picks], bank.characters[picks], grid)
        said = {name: head(features.float()) for name, head in self.heads.items()}
        shapes = functional.cross_entropy(said["form"], goal["form"])
        shapes = shapes + functional.cross_entropy(said["colour"], goal["colour"])
        covered = goal["form"] > 0
        for name, digits in (("hundreds", 11), ("tens", 10)):
            logits = said[name].view(-1, 4, digits)[covered].flatten(0, 1)
            if len(logits):  # receipts have no shapes
                goals = goal[name][covered].flatten()
                shapes = shapes + 0.5 * functional.cross_entropy(logits, goals)
        logits = said["characters"].unflatten(1, (MOST_CHARACTERS, -1)).flatten(0, 1)
        goals = goal["characters"].flatten()
        here = goals > 0
        none = functional.cross_entropy(logits[~here], goals[~here])
        return shapes, functional.cross_entropy(logits[here], goals[here]) + 4 * none

    def talk_loss(
        self, features: Tensor, deep: list[Tensor], bank: Bank, picks: Tensor, grid: tuple[int, int]
    ) -> Talk:
        """Cross-entropy of the answers, given the features of ``picks``."""
        ids, weight, look = self.sequence(bank, picks, grid)
        turns = bank.long.ids.shape[1], bank.short.ids.shape[1]
        plan = _plan(len(self.start), grid, *turns, self.device)
        visual = ids == self.config.image_token_id
        language = self.model.model.language_model
        words = language.embed_tokens(ids)
        words = words.masked_scatter(visual[..., None].expand_as(words), features.to(words.dtype))
        hidden = language(
            inputs_embeds=words,
            position_ids=plan.positions[:, None].expand(3, len(ids), -1),
            attention_mask=plan.mask[None, None].expand(len(ids), 1, -1, -1),
            visual_pos_masks=visual,
            deepstack_visual_embeds=deep,
            use_cache=False,
        ).last_hidden_state
        following = torch.cat([weight[:, 1:], torch.zeros_like(weight[:, :1])], 1)
        asked = following > 0
        logits = self.model.lm_head(hidden[asked]).float()
        goal = ids.roll(-1, 1)[asked]
        losses = functional.cross_entropy(logits, goal, reduction="none")
        missed = torch.zeros_like(following).masked_scatter(
            asked, (logits.argmax(-1) != goal).float()
        )
        return Talk(
            loss=(losses * following[asked]).sum() / following.sum(),
            look=self._look_loss(bank, picks, look.roll(-1, 1), plan, grid),
            missed=missed[:, plan.first_turn :],
            weight=following[:, plan.first_turn :],
            turns=turns,
        )

    def sequence(
        self, bank: Bank, picks: Tensor, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, weights and where to look, each (batch, length): template, image, turns."""
        image = [self.config.image_token_id] * (grid[0] * grid[1])
        start = torch.tensor([*self.start, *image, *self.end], device=self.device)
        ids = start.expand(len(picks), -1)
        nothing = torch.zeros_like(ids)
        long, short = bank.long, bank.short

        def joined(first: Tensor, a: Tensor, b: Tensor) -> Tensor:
            return torch.cat([first, a[picks].flatten(1).long(), b[picks].flatten(1).long()], 1)

        return (
            joined(ids, long.ids, short.ids),
            joined(nothing, long.weight, short.weight).float(),
            joined(nothing, long.look, short.look),
        )

    def _look_loss(
        self, bank: Bank, picks: Tensor, look: Tensor, plan: Plan, grid: tuple[int, int]
    ) -> Tensor:
        """How far the looking heads are from attending to where the next token is to be found."""
        where = look[:, plan.first_turn :]
        shapes, characters = _covers(bank.shapes[picks], bank.characters[picks], grid)
        nowhere = torch.zeros_like(shapes[..., :1])
        covers = torch.cat([nowhere, shapes, characters], -1).transpose(1, 2)  # (batch, 13, tokens)
        goal = covers.gather(1, where[..., None].expand(-1, -1, covers.shape[2]))
        layer = self.model.model.language_model.layers[LOOKING_LAYER].self_attn
        states, angles = self._looking
        attended = _attended(layer, states, angles, plan)
        image = slice(len(self.start), len(self.start) + grid[0] * grid[1])
        share = (attended[..., image] * goal[:, None]).sum(-1)  # (batch, heads, turn tokens)
        wanted = (where != NOWHERE) & goal.any(-1)
        return -(share.transpose(1, 2)[wanted] + 1e-6).log().mean()

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
        return missed.reshape(len(missed), self.turns[1], SHORT_TOKENS).sum(-1) == 0

    @property
    def hundreds_right(self) -> Tensor:
        """The share of boxes' first digits that came out right."""
        return 1 - self.missed[self.weight == HUNDREDS].mean()


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


def _embed(module: Any, patches: Tensor) -> Any:
    """The patch embedding as the matrix product it is; a 3D convolution is far slower."""
    return functional.linear(patches, module.proj.weight.flatten(1), module.proj.bias)


def _attention(
    student: Student, module: Any, hidden_states: Tensor, position_embeddings: Any, **_: Any
) -> Any:
    """The vision tower's attention in one call; transformers' own makes one per image."""
    from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb_vision

    n, batch = len(hidden_states), student.images
    q, k, v = module.qkv(hidden_states).reshape(n, 3, module.num_heads, -1).unbind(1)
    q, k = apply_rotary_pos_emb_vision(q, k, *position_embeddings)
    shape = (batch, n // batch, module.num_heads, -1)
    q, k, v = (t.to(v.dtype).reshape(shape).transpose(1, 2) for t in (q, k, v))
    out = functional.scaled_dot_product_attention(q, k, v)
    return module.proj(out.transpose(1, 2).reshape(n, -1))


def _covers(shapes: Tensor, characters: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Whether a shape covers a token's centre, a character's centre lies in it.

    Both (pictures, tokens, 6), for the shapes and for the places of the text.
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
    each place in the text the character whose centre lies in the token. 0 is none.
    """
    inside, there = _covers(shapes, characters, grid)
    owner = inside.float().argmax(-1)  # (pictures, tokens)
    mine = torch.gather(shapes, 1, owner[..., None].expand(-1, -1, 6))
    mine = mine * inside.any(-1, keepdim=True)
    thousandths = (mine[..., 2:] * 1000).round().long().flatten(0, 1)
    return {
        "form": mine[..., 0].long().flatten(),
        "colour": mine[..., 1].long().flatten(),
        "hundreds": thousandths // 100,
        "tens": thousandths // 10 % 10,
        "characters": (characters[:, None, :, 0].long() * there).flatten(0, 1),
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


def pixels(bank: Bank, picks: Tensor, side: int, noise: torch.Generator | None) -> Tensor:
    """Pictures at a pixel budget of ``side`` squared, (batch, 3, height, width) in -1..1."""
    x: Tensor = bank.images[picks].permute(0, 3, 1, 2).float()
    height, width = x.shape[2:]
    w, h = target_size((width, height), side, PixelLimits(min_pixels=4096))
    if (h, w) != (height, width):  # what PIL does, which resizes at inference
        x = functional.interpolate(x, (h, w), mode="bicubic", antialias=True, align_corners=False)
        x = x.round().clamp(0, 255)
    x = x / 127.5 - 1
    if noise is not None:
        amount = 0.03 * torch.rand(len(x), 1, 1, 1, device=x.device, generator=noise)
        x = x + amount * torch.randn(x.shape, device=x.device, generator=noise)
    return x


# ---- training


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long: steps in all, steps of dense targets alone, steps at 512 px alone."""

    steps: int = 6904
    dense_steps: int = 3000
    full_size_steps: int = 4800
    learning_rate: float = 1e-3
    warmup: int = 150

    def rate(self, step: int) -> float:
        """Linear warm-up, again when the answers begin; constant to 45%, then cosine to 2%."""
        begun = step if step < self.dense_steps else step - self.dense_steps
        done = max(0.0, step / self.steps - 0.45) / 0.55
        fall = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))
        return self.learning_rate * min(1.0, (begun + 1) / self.warmup) * fall

    def side(self, step: int, rng: np.random.Generator) -> int:
        """The resolution of a step."""
        sides, odds = list(RESOLUTIONS), np.array(list(RESOLUTIONS.values()), float)
        drawn = int(rng.choice(sides, p=odds / odds.sum()))
        return 512 if step < self.full_size_steps else drawn


def train(
    student: Student,
    banks: dict[str, Bank],
    held_out: dict[str, Bank],
    schedule: Schedule,
    seed: int,
    stop_after_s: float = math.inf,
) -> None:
    """All steps; prints the losses, and the share of right answers on pictures held out."""
    weights = [*student.model.parameters(), *student.heads.parameters()]
    optimizer = torch.optim.AdamW(
        weights, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.02, fused=student.device == "cuda"
    )
    rng = np.random.default_rng(seed)
    noise = torch.Generator(student.device).manual_seed(seed)
    started = time.perf_counter()
    for step in range(schedule.steps):
        if time.perf_counter() - started > stop_after_s:
            print(f"stopped at step {step}: out of time", flush=True)
            break
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        bank = banks["receipt" if step % 5 == 4 else "scene"]
        side = schedule.side(step, rng)
        drawn = rng.integers(0, len(bank), min(BATCH.get(side, 96), len(bank)))
        picks = torch.from_numpy(drawn).to(student.device)
        x = pixels(bank, picks, side, noise)
        talking = step >= schedule.dense_steps
        losses = _losses(student, bank, picks, x, side, talking)
        optimizer.zero_grad(set_to_none=True)
        losses["all"].backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        if step % 250 == 248:  # a scene
            values = " ".join(f"{name} {value.item():.3f}" for name, value in losses.items())
            seconds = time.perf_counter() - started
            right = examine(student, held_out) if step % 500 == 498 and "talk" in losses else ""
            print(f"{step + 1} {seconds:.0f} s {side} px: {values} {right}", flush=True)


def _losses(
    student: Student, bank: Bank, picks: Tensor, x: Tensor, side: int, talking: bool
) -> dict[str, Tensor]:
    grid = x.shape[2] // 32, x.shape[3] // 32
    losses: dict[str, Tensor] = {}
    with torch.autocast(student.device, torch.bfloat16):
        features, deep = student.see(x)
        if talking:
            talk = student.talk_loss(features, deep, bank, picks, grid)
            losses = {"talk": talk.loss, "look": 0.5 * talk.look}
    if side >= 384:  # below, most of the print cannot be told
        scale = 0.3 if talking else 1.0
        shapes, characters = student.dense_loss(features, bank, picks, grid)
        losses |= {"shapes": scale * shapes, "characters": scale * characters}
    return losses | {"all": torch.stack(list(losses.values())).sum()}


@torch.inference_mode()
def examine(student: Student, held_out: dict[str, Bank], side: int = 512) -> str:
    """The share of turns whose every token would be right, by task, in words."""
    right: dict[str, list[float]] = {}
    for kind, bank in held_out.items():
        tasks = SHORT if kind == "scene" else RECEIPT_SHORT
        for start in range(0, len(bank), 128):
            picks = torch.arange(start, min(start + 128, len(bank)), device=student.device)
            x = pixels(bank, picks, side, None)
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


def _steps(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder for the model's files")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=44_000)
    parser.add_argument("--receipts", type=int, default=10_000)
    parser.add_argument("--steps", type=_steps, default=(6904, 3000, 4800), help="all,dense,512 px")
    parser.add_argument("--stop-after-s", type=float, default=math.inf, help="training's limit")
    args = parser.parse_args()
    started = time.perf_counter()
    count = {"scene": args.scenes, "receipt": args.receipts}
    banks = {kind: draw(kind, n, PURPOSES[0], args.seed) for kind, n in count.items()}
    # held out: the same purpose, another seed; the evaluation set is of the other purpose
    held_out = {kind: draw(kind, 256, PURPOSES[0], args.seed + 1) for kind in count}
    print(f"drawn: {time.perf_counter() - started:.0f} s", flush=True)
    banks = {kind: bank.to(args.device) for kind, bank in banks.items()}
    held_out = {kind: bank.to(args.device) for kind, bank in held_out.items()}
    student = Student(args.device, args.seed)
    total = sum(p.numel() for p in student.model.parameters())
    print(
        f"{total / 1e6:.2f} M parameters, ready: {time.perf_counter() - started:.0f} s", flush=True
    )
    steps, dense, full = args.steps
    schedule = Schedule(steps=steps, dense_steps=dense, full_size_steps=full)
    train(student, banks, held_out, schedule, args.seed, args.stop_after_s)
    save(student, args.out)
    print(f"all: {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
