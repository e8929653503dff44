"""Qwen3-VL's forward pass over packed sequences, on the weights of transformers' modules.

Nothing here waits for the GPU but the first image of a size, and every shape is known on the CPU
beforehand. Queries, keys and
values come from one matrix product, gate and up projection from another; the modules' own weights
become views of the joined ones, so that transformers' forward pass still works on them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    apply_rotary_pos_emb,
    apply_rotary_pos_emb_vision,
)
from transformers.vision_utils import (
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
)

from qvl_lab.engine.attention import Lengths, block_attention, packed_attention
from qvl_lab.errors import ConfigError
from qvl_lab.probe.stages import stage

#: Model types that it runs.
FAMILIES = ("qwen3_vl", "qwen3_vl_moe")
Put = Callable[[list[int], torch.dtype], Tensor]


@dataclass(frozen=True)
class Prompts:
    """Prompt tokens of one forward pass, sequence after sequence.

    Attributes
    ----------
    ids : Tensor
        (tokens,).
    positions : Tensor
        (3, tokens): time, row, column.
    places : Tensor
        (tokens,): where in the flattened cache their keys and values go.
    image_places : Tensor
        (visual tokens,): which tokens show an image.
    features : Tensor
        (1 + DeepStack layers, visual tokens, hidden).
    lengths : Lengths
    context : Tensor or None
        (keys,): places in the flattened cache of all that each sequence attends to; None if no
        sequence has anything before these tokens.
    last : Tensor
        Tokens whose successor is asked for.
    """

    ids: Tensor
    positions: Tensor
    places: Tensor
    image_places: Tensor
    features: Tensor
    lengths: Lengths
    context: Tensor | None
    last: Tensor


@dataclass(frozen=True)
class KeyValues:
    """The cache: keys and values, each (layers, blocks, block size, key-value heads, size)."""

    keys: Tensor
    values: Tensor

    @property
    def block_size(self) -> int:
        return self.keys.shape[2]

    def write(self, layer: int, places: Tensor, k: Tensor, v: Tensor) -> None:
        """Put keys and values, (tokens, key-value heads, size), at places of the flat cache."""
        self.keys[layer].flatten(0, 1).index_copy_(0, places, k)
        self.values[layer].flatten(0, 1).index_copy_(0, places, v)

    def read(self, layer: int, places: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values at places of the flat cache."""
        return self.keys[layer].flatten(0, 1)[places], self.values[layer].flatten(0, 1)[places]


class Network:
    """The two halves of a model.

    Parameters
    ----------
    model : Qwen3VLForConditionalGeneration or Qwen3VLMoeForConditionalGeneration
    put : callable
        Brings a list of int to the model's device.

    Raises
    ------
    ConfigError
        For a model of another family.
    """

    def __init__(self, model: Any, put: Put) -> None:
        family = model.config.model_type
        if family not in FAMILIES:
            raise ConfigError(
                f"the fast engine runs {' and '.join(FAMILIES)}, not {family}; use engine='stock'"
            )
        self.tower, self.text = model.model.visual, model.model.language_model
        self.lm_head = model.lm_head
        self.device, self.dtype = model.device, self.tower.pos_embed.weight.dtype
        self._put = None if self.device.type == "cpu" else put
        self._layers = [_Layer(layer) for layer in self.text.layers]
        weight = self.tower.patch_embed.proj.weight
        # both frames of a still picture are the same, so the weights of the frames add up
        self._patch_weight = weight.sum(2).flatten(1)
        self._plan = lru_cache(maxsize=64)(self._plan_of)

    @property
    def depth(self) -> int:
        """Feature tensors of an image: one, and one for each DeepStack layer."""
        return 1 + len(self.tower.deepstack_visual_indexes)

    def key_values(self, blocks: int, block_size: int) -> KeyValues:
        """An empty cache. Raises torch's out-of-memory error."""
        config = self.text.config
        shape = (len(self._layers), blocks, block_size, config.num_key_value_heads, config.head_dim)
        keys, values = (torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in range(2))
        return KeyValues(keys, values)

    def see(self, patches: Tensor, grids: list[tuple[int, int]]) -> Tensor:
        """Features of images, (1 + DeepStack layers, visual tokens, hidden).

        Parameters
        ----------
        patches : Tensor
            (patches, 3 * 16 * 16) in -1..1, those of four that make a token together.
        grids : list of (int, int)
            Rows and columns of patches of each image.
        """
        tower, plans = self.tower, [self._plan(*grid) for grid in grids]
        corners, shares, positions = (torch.cat(parts) for parts in zip(*plans, strict=True))
        with stage("patch_embed", gpu=True):
            x = functional.linear(patches, self._patch_weight, tower.patch_embed.proj.bias)
        x = x + (tower.pos_embed(corners) * shares[:, :, None]).sum(1).to(x.dtype)
        angles = tower.rotary_pos_emb(x, positions)
        lengths = Lengths.of([h * w for h, w in grids], causal=False, put=self._put)
        deep = []
        for i, block in enumerate(tower.blocks):
            x = x + self._look(block.attn, block.norm1(x), angles, lengths)
            x = x + block.mlp(block.norm2(x))
            if i in tower.deepstack_visual_indexes:
                merger = tower.deepstack_merger_list[tower.deepstack_visual_indexes.index(i)]
                with stage("merger", gpu=True):
                    deep.append(merger(x))
        with stage("merger", gpu=True):
            return torch.stack([tower.merger(x), *deep])

    def read(self, prompts: Prompts, cache: KeyValues) -> Tensor:
        """Scores of the tokens after ``prompts.last``, (asked for, vocabulary)."""
        with stage("layers", gpu=True):
            x = self._read(prompts, cache)
        with stage("lm_head", gpu=True):
            return self._scores(x)

    def _read(self, prompts: Prompts, cache: KeyValues) -> Tensor:
        """Hidden states of the tokens whose successors are asked for."""
        x = self.text.embed_tokens(prompts.ids)
        if len(prompts.image_places):
            x = x.index_copy(0, prompts.image_places, prompts.features[0])
        angles = self._angles(x, prompts.positions)
        for i, layer in enumerate(self._layers):
            q, k, v = layer.attend(x, angles)
            cache.write(i, prompts.places, k, v)
            if prompts.context is not None:
                k, v = cache.read(i, prompts.context)
            x = layer.finish(x, packed_attention(q, k, v, prompts.lengths, layer.scale))
            if i + 1 < len(prompts.features) and len(prompts.image_places):
                x = x.index_add(0, prompts.image_places, prompts.features[i + 1])
        last: Tensor = x[prompts.last]
        return last

    def step(
        self, ids: Tensor, position: Tensor, length: Tensor, table: Tensor, cache: KeyValues
    ) -> Tensor:
        """Scores of the next token of each sequence, (sequences, vocabulary).

        Parameters
        ----------
        ids, position, length : Tensor
            (sequences,): the last token, its position, and how many tokens came before it.
        table : Tensor
            (sequences, most blocks of a sequence).
        """
        block = table.gather(1, (length // cache.block_size)[:, None])[:, 0]
        places = block * cache.block_size + length % cache.block_size
        known = length + 1
        x = self.text.embed_tokens(ids)
        angles = self._angles(x, position.expand(3, -1))
        for i, layer in enumerate(self._layers):
            q, k, v = layer.attend(x, angles)
            cache.write(i, places, k, v)
            keys, values = cache.keys[i], cache.values[i]
            seen = block_attention(q, keys, values, table, known, layer.scale)
            x = layer.finish(x, seen)
        return self._scores(x)

    def _scores(self, x: Tensor) -> Tensor:
        scores: Tensor = self.lm_head(_norm(self.text.norm, x)).float()
        return scores

    def _angles(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.text.rotary_emb(x[None], positions[:, None])
        return cos[0], sin[0]

    def _look(
        self, attention: Any, x: Tensor, angles: tuple[Tensor, Tensor], lengths: Lengths
    ) -> Tensor:
        q, k, v = attention.qkv(x).view(len(x), 3, attention.num_heads, -1).unbind(1)
        q, k = apply_rotary_pos_emb_vision(q, k, *angles)
        found = packed_attention(q, k, v, lengths, attention.scaling)
        out: Tensor = attention.proj(found.flatten(1))
        return out

    def _plan_of(self, h: int, w: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of a grid: learned positions to mix, shares of each, rows and columns."""
        tower, grid = self.tower, torch.tensor([[1, h, w]])
        corners, shares = get_vision_interpolation_indices_and_weights(
            grid,
            num_grid_per_side=math.isqrt(len(tower.pos_embed.weight)),
            mode="bilinear",
            align_corners=True,
            spatial_merge_size=tower.spatial_merge_size,
        )
        positions = get_vision_position_ids(grid, tower.spatial_merge_size)
        return corners.to(self.device), shares.to(self.device), positions.to(self.device)


class _Layer:
    """A decoder layer on both sides of its attention."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._attention, self._mlp = attention, mlp
        self._before, self._after = layer.input_layernorm, layer.post_attention_layernorm
        self.scale = attention.scaling
        projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        self._project = joined(projections)
        self._gate_up = joined([mlp.gate_proj, mlp.up_proj]) if hasattr(mlp, "gate_proj") else None

    def attend(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of tokens, each (tokens, heads, size)."""
        attention = self._attention
        projected = self._project(_norm(self._before, x))
        heads = [t.reshape(len(x), -1, attention.head_dim) for t in projected]
        q, k = _norm(attention.q_norm, heads[0]), _norm(attention.k_norm, heads[1])
        q, k = apply_rotary_pos_emb(q, k, *angles)
        return q, k, heads[2]

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """The layer's output, from its input and what its attention found."""
        x = x + self._attention.o_proj(attended.flatten(1))
        y = _norm(self._after, x)
        if self._gate_up is None:  # a mixture of experts
            mixed: Tensor = self._mlp(y[None])
            return x + mixed[0]
        gate, up = self._gate_up(y)
        out: Tensor = x + self._mlp.down_proj(self._mlp.act_fn(gate) * up)
        return out


def joined(layers: list[nn.Module]) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """Linear layers of one input as one matrix product; their weights become views of it.

    Layers that are quantised or have a bias stay apart.
    """
    plain = all(type(m) is nn.Linear and m.bias is None for m in layers)
    weights: list[Any] = [m.weight for m in layers]
    if not plain or any(type(w.data) is not Tensor for w in weights):
        return lambda x: tuple(layer(x) for layer in layers)
    sizes = [len(weight) for weight in weights]
    # ordinary tensors stay ordinary: the model may be trained afterwards
    with torch.inference_mode(weights[0].is_inference()), torch.no_grad():
        whole = torch.cat([weight.data for weight in weights])
        for weight, view in zip(weights, torch.split(whole, sizes), strict=True):
            weight.data = view
    return lambda x: torch.split(functional.linear(x, whole), sizes, -1)


def _norm(norm: Any, x: Tensor) -> Tensor:
    return functional.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)
