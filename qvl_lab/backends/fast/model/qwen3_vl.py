"""Qwen3-VL's forward pass over packed sequences, on the weights of transformers' modules.

Nothing here waits for the GPU but the first image of a size, and every shape is known on the CPU
beforehand. Queries, keys and values come from one matrix product, gate and up projection from
another; the modules' own weights become views of the joined ones, so that transformers' forward
pass still works on them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.vision_utils import (
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
)

from qvl_lab.backends.fast.model.attention import Lengths, block_attention, packed_attention
from qvl_lab.backends.fast.model.layers import (
    Angles,
    Functions,
    Norm,
    Summands,
    attend_weights,
    finish_weights,
    look_weights,
    normed,
)
from qvl_lab.errors import ConfigError
from qvl_lab.models.linear import FEW_ROWS
from qvl_lab.probe.stages import stage

#: Model types that it runs.
FAMILIES = ("qwen3_vl", "qwen3_vl_moe")
#: Activations of text layers and vision blocks, as config files name them.
ACTIVATIONS = ("silu", "gelu_pytorch_tanh")
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

    def flat(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, each (places, key-value heads, size)."""
        return self.keys[layer].flatten(0, 1), self.values[layer].flatten(0, 1)


class Qwen3VLModel:
    """The two halves of a model.

    Parameters
    ----------
    model : Qwen3VLForConditionalGeneration or Qwen3VLMoeForConditionalGeneration
    put : callable
        Brings a list of int to the model's device.
    fused : bool
        On CUDA, fuse what lies between matrix products.

    Raises
    ------
    ConfigError
        For a model of another family.
    """

    def __init__(self, model: Any, put: Put, fused: bool = False) -> None:
        family = model.config.model_type
        if family not in FAMILIES:
            raise ConfigError(
                f"the fast engine runs {' and '.join(FAMILIES)}, not {family}; use engine='stock'"
            )
        self.tower, self.text = model.model.visual, model.model.language_model
        self.lm_head = model.lm_head
        self.device, self.dtype = model.device, self.tower.pos_embed.weight.dtype
        self._put = None if self.device.type == "cpu" else put
        acts = self.text.config.hidden_act, self.tower.config.hidden_act
        if acts != ACTIVATIONS:
            raise ConfigError(
                f"the fast engine knows the activations {' and '.join(ACTIVATIONS)}, not "
                f"{' and '.join(acts)}; use engine='stock'"
            )
        norm, cuda = self.text.norm, self.device.type == "cuda"
        self.fused = fused and cuda
        self._do = Functions(norm.variance_epsilon, self.tower.blocks[0].norm1.eps, self.fused)
        self._layers = [
            (attend_weights(layer), finish_weights(layer), layer) for layer in self.text.layers
        ]
        self._blocks = [look_weights(block) for block in self.tower.blocks]
        self._scale = self.text.layers[0].self_attn.scaling
        self._last = Norm(norm.weight), norm.variance_epsilon
        weight = self.tower.patch_embed.proj.weight
        # both frames of a still picture are the same, so the weights of the frames add up
        self._patch_weight = weight.sum(2).flatten(1)
        self._plan = lru_cache(maxsize=64)(self._plan_of)

    @property
    def depth(self) -> int:
        """Feature tensors of an image: one, and one for each DeepStack layer."""
        return 1 + len(self.tower.deepstack_visual_indexes)

    def warm_up(self, cache: KeyValues, place: int) -> None:
        """Compile what few tokens need and what many do, by reading images; writes at ``place``."""
        for tokens in (2, 1 + math.isqrt(FEW_ROWS)):
            self._read_blank(tokens * self.tower.spatial_merge_size, cache, place)

    def _read_blank(self, side: int, cache: KeyValues, place: int) -> None:
        """Read an image of ``side`` by ``side`` patches."""
        patches = torch.zeros(side * side, self._patch_weight.shape[1], dtype=self.dtype)
        features = self.see(patches.to(self.device), [(side, side)])
        tokens = features.shape[1]
        count = torch.arange(tokens, device=self.device)
        prompts = Prompts(
            ids=torch.zeros_like(count),
            positions=count.expand(3, -1),
            places=torch.full_like(count, place),
            image_places=count,
            features=features,
            lengths=Lengths.of([tokens], causal=True, put=self._put),
            context=None,
            last=count[:1],
        )
        self.read(prompts, cache)

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
        scale, deep, more = tower.blocks[0].attn.scaling, [], None
        for i, block in enumerate(self._blocks):
            x, q, k, v = self._do.look(x, more, block, angles)
            x, more = self._do.see(x, packed_attention(q, k, v, lengths, scale), block)
            if i in tower.deepstack_visual_indexes:
                x, more = x + more, None
                merger = tower.deepstack_merger_list[tower.deepstack_visual_indexes.index(i)]
                with stage("merger", gpu=True):
                    deep.append(merger(x))
        with stage("merger", gpu=True):
            x = x if more is None else x + more
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
        angles, more = self._angles(x, prompts.positions), torch.zeros_like(x)
        for i in range(len(self._layers)):
            keys, values = cache.flat(i)
            x, q, k, v = self._attend(i, x, more, angles, keys, values, prompts.places)
            if prompts.context is not None:
                k, v = keys[prompts.context], values[prompts.context]
            attended = packed_attention(q, k, v, prompts.lengths, self._scale)
            deep = i + 1 < len(prompts.features) and len(prompts.image_places)
            if i + 1 == len(self._layers) and not deep:  # only those asked for go on
                x, more = self._finish(i, x[prompts.last], attended[prompts.last])
                return x + more
            x, more = self._finish(i, x, attended)
            if deep:
                x = x.index_add(0, prompts.image_places, prompts.features[i + 1])
        last: Tensor = (x + more)[prompts.last]
        return last

    def _attend(self, i: int, x: Tensor, more: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = self._do.attend(x, more, self._layers[i][0], *rest)
        return found

    def _finish(self, i: int, x: Tensor, attended: Tensor) -> Summands:
        _, weights, layer = self._layers[i]
        if weights.down is not None:
            found: Summands = self._do.finish(x, attended, weights)
            return found
        x, y = self._do.settle(x, attended, weights)
        return x, layer.mlp(y[None])[0]

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
        angles, more = self._angles(x, position.expand(3, -1)), torch.zeros_like(x)
        for i in range(len(self._layers)):
            x, q, _, _ = self._attend(i, x, more, angles, *cache.flat(i), places)
            found = block_attention(q, cache.keys[i], cache.values[i], table, known, self._scale)
            x, more = self._finish(i, x, found)
        return self._scores(x + more)

    def _scores(self, x: Tensor) -> Tensor:
        scores: Tensor = self.lm_head(normed(x, *self._last)).float()
        return scores

    def _angles(self, x: Tensor, positions: Tensor) -> Angles:
        cos, sin = self.text.rotary_emb(x[None], positions[:, None])
        return cos[0], sin[0]

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
