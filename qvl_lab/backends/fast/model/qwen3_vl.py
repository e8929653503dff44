"""Qwen3-VL's forward pass over packed sequences, on the weights of transformers' modules.

Every shape is known on the CPU beforehand, and the CPU waits for the GPU only at the first image of
each size. Queries, keys and values come from one matrix product, gate and up projection from
another; the modules' own weights become views of the merged ones, so that transformers' forward
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
    CosSin,
    LayerFunctions,
    Norm,
    Summands,
    input_weights,
    normed,
    output_weights,
    vision_weights,
)
from qvl_lab.errors import ConfigError
from qvl_lab.models.linear import FEW_ROWS
from qvl_lab.probe.stages import stage

#: Model types that this module runs.
MODEL_TYPES = ("qwen3_vl", "qwen3_vl_moe")
#: Activations of text layers and vision blocks, as config files name them.
ACTIVATIONS = ("silu", "gelu_pytorch_tanh")
ToDevice = Callable[[list[int], torch.dtype], Tensor]


@dataclass(frozen=True)
class PackedPrompts:
    """Prompt tokens of one forward pass, packed sequence after sequence.

    Attributes
    ----------
    ids : Tensor
        (tokens,).
    positions : Tensor
        (3, tokens): the position in time, row and column.
    slot_mapping : Tensor
        (tokens,): the slot of the flattened cache that each token's key and value are stored in.
    image_index : Tensor
        (visual tokens,): which of the tokens show an image.
    features : Tensor
        (1 + DeepStack layers, visual tokens, hidden).
    lengths : Lengths
    context_slots : Tensor or None
        (keys,): the slots of all tokens that each sequence attends to; None if no sequence has
        tokens in the cache from earlier passes.
    last : Tensor
        (sequences that end here,): the tokens whose next token is asked for.
    """

    ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    image_index: Tensor
    features: Tensor
    lengths: Lengths
    context_slots: Tensor | None
    last: Tensor


@dataclass(frozen=True)
class KVCache:
    """Keys and values, each (layers, blocks, block size, key-value heads, size)."""

    keys: Tensor
    values: Tensor

    @property
    def block_size(self) -> int:
        """Tokens of a block."""
        return self.keys.shape[2]

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, each (slots, key-value heads, size)."""
        return self.keys[index].flatten(0, 1), self.values[index].flatten(0, 1)


class Qwen3VLModel:
    """The vision tower and the language model.

    Parameters
    ----------
    model : Qwen3VLForConditionalGeneration or Qwen3VLMoeForConditionalGeneration
    to_device : callable or None
        Makes a tensor on the model's device from a list of int; not used on a CPU.
    fused : bool
        On CUDA, fuse what lies between matrix products.

    Raises
    ------
    ConfigError
        For a model of another family.
    """

    def __init__(self, model: Any, to_device: ToDevice | None, fused: bool = False) -> None:
        model_type = model.config.model_type
        if model_type not in MODEL_TYPES:
            raise ConfigError(
                f"the fast engine runs {' and '.join(MODEL_TYPES)}, not {model_type}; "
                "use engine='stock'"
            )
        self.tower, self.text = model.model.visual, model.model.language_model
        self.lm_head = model.lm_head
        self.device, self.dtype = model.device, self.tower.pos_embed.weight.dtype
        self._to_device = None if self.device.type == "cpu" else to_device
        acts = self.text.config.hidden_act, self.tower.config.hidden_act
        if acts != ACTIVATIONS:
            raise ConfigError(
                f"the fast engine knows the activations {' and '.join(ACTIVATIONS)}, not "
                f"{' and '.join(acts)}; use engine='stock'"
            )
        norm, cuda = self.text.norm, self.device.type == "cuda"
        self.fused = fused and cuda
        vision_eps = self.tower.blocks[0].norm1.eps
        self._functions = LayerFunctions(norm.variance_epsilon, vision_eps, self.fused)
        self._layers = [
            (input_weights(layer), output_weights(layer), layer) for layer in self.text.layers
        ]
        self._vision_blocks = [vision_weights(block) for block in self.tower.blocks]
        self._scale = self.text.layers[0].self_attn.scaling
        self._final_norm = Norm(norm.weight), norm.variance_epsilon
        weight = self.tower.patch_embed.proj.weight
        # both frames of a still picture are the same, so the weights of the frames add up
        self._patch_weight = weight.sum(2).flatten(1)
        self._grid_positions = lru_cache(maxsize=64)(self._compute_grid_positions)

    @property
    def feature_levels(self) -> int:
        """Feature tensors of an image: the merger's, and one for each DeepStack layer."""
        return 1 + len(self.tower.deepstack_visual_indexes)

    def warm_up(self, cache: KVCache, slot: int) -> None:
        """Compile for few and for many tokens by reading blank images, stored in one ``slot``."""
        for tokens in (2, 1 + math.isqrt(FEW_ROWS)):
            self._prefill_blank(tokens * self.tower.spatial_merge_size, cache, slot)

    def _prefill_blank(self, side: int, cache: KVCache, slot: int) -> None:
        """Read an image of ``side`` by ``side`` patches."""
        patches = torch.zeros(side * side, self._patch_weight.shape[1], dtype=self.dtype)
        features = self.encode_images(patches.to(self.device), [(side, side)])
        tokens = features.shape[1]
        count = torch.arange(tokens, device=self.device)
        prompts = PackedPrompts(
            ids=torch.zeros_like(count),
            positions=count.expand(3, -1),
            slot_mapping=torch.full_like(count, slot),
            image_index=count,
            features=features,
            lengths=Lengths.of([tokens], causal=True, to_device=self._to_device),
            context_slots=None,
            last=count[:1],
        )
        self.prefill(prompts, cache)

    def allocate_cache(self, blocks: int, block_size: int) -> KVCache:
        """Allocate an empty cache. Raises torch's out-of-memory error."""
        config = self.text.config
        shape = (len(self._layers), blocks, block_size, config.num_key_value_heads, config.head_dim)
        keys, values = (torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in range(2))
        return KVCache(keys, values)

    def encode_images(self, patches: Tensor, grids: list[tuple[int, int]]) -> Tensor:
        """Compute the features of images, (1 + DeepStack layers, visual tokens, hidden).

        Parameters
        ----------
        patches : Tensor
            (patches, 3 * 16 * 16) in -1..1; the four patches of a visual token follow each other.
        grids : list of (int, int)
            Rows and columns of patches of each image.
        """
        tower, positions = self.tower, [self._grid_positions(*grid) for grid in grids]
        corners, weights, rows_columns = (torch.cat(p) for p in zip(*positions, strict=True))
        with stage("patch_embed", gpu=True):
            x = functional.linear(patches, self._patch_weight, tower.patch_embed.proj.bias)
        x = x + (tower.pos_embed(corners) * weights[:, :, None]).sum(1).to(x.dtype)
        cos_sin = tower.rotary_pos_emb(x, rows_columns)
        lengths = Lengths.of([h * w for h, w in grids], causal=False, to_device=self._to_device)
        scale, deepstack, residual = tower.blocks[0].attn.scaling, [], None
        for i, block in enumerate(self._vision_blocks):
            x, q, k, v = self._functions.vision_qkv_rope(x, residual, block, cos_sin)
            attended = packed_attention(q, k, v, lengths, scale)
            x, residual = self._functions.vision_proj_mlp(x, attended, block)
            if i in tower.deepstack_visual_indexes:
                x, residual = x + residual, None
                merger = tower.deepstack_merger_list[tower.deepstack_visual_indexes.index(i)]
                with stage("merger", gpu=True):
                    deepstack.append(merger(x))
        with stage("merger", gpu=True):
            x = x if residual is None else x + residual
            return torch.stack([tower.merger(x), *deepstack])

    def prefill(self, prompts: PackedPrompts, cache: KVCache) -> Tensor:
        """Compute the logits of the tokens after ``prompts.last``, (len(last), vocabulary)."""
        with stage("layers", gpu=True):
            x = self._prefill_layers(prompts, cache)
        with stage("lm_head", gpu=True):
            return self._logits(x)

    def _prefill_layers(self, prompts: PackedPrompts, cache: KVCache) -> Tensor:
        """The last hidden states of the tokens ``prompts.last``."""
        x = self.text.embed_tokens(prompts.ids)
        if len(prompts.image_index):
            x = x.index_copy(0, prompts.image_index, prompts.features[0])
        cos_sin, residual = self._cos_sin(x, prompts.positions), torch.zeros_like(x)
        for i in range(len(self._layers)):
            keys, values = cache.layer(i)
            x, q, k, v = self._qkv(i, x, residual, cos_sin, keys, values, prompts.slot_mapping)
            if prompts.context_slots is not None:
                k, v = keys[prompts.context_slots], values[prompts.context_slots]
            attended = packed_attention(q, k, v, prompts.lengths, self._scale)
            deepstack = i + 1 < len(prompts.features) and len(prompts.image_index)
            if i + 1 == len(self._layers) and not deepstack:  # only the last tokens are needed
                x, residual = self._output(i, x[prompts.last], attended[prompts.last])
                return x + residual
            x, residual = self._output(i, x, attended)
            if deepstack:
                x = x.index_add(0, prompts.image_index, prompts.features[i + 1])
        last: Tensor = (x + residual)[prompts.last]
        return last

    def _qkv(self, i: int, x: Tensor, residual: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        out: tuple[Tensor, ...] = self._functions.qkv_rope_store(
            x, residual, self._layers[i][0], *rest
        )
        return out

    def _output(self, i: int, x: Tensor, attended: Tensor) -> Summands:
        _, weights, layer = self._layers[i]
        if weights.down is not None:
            out: Summands = self._functions.o_proj_mlp(x, attended, weights)
            return out
        x, y = self._functions.o_proj_norm(x, attended, weights)
        return x, layer.mlp(y[None])[0]

    def decode(
        self, ids: Tensor, position: Tensor, length: Tensor, block_table: Tensor, cache: KVCache
    ) -> Tensor:
        """Compute the logits of the next token of each sequence, (sequences, vocabulary).

        Parameters
        ----------
        ids, position, length : Tensor
            (sequences,) each: the last token, its position, and the tokens cached before it.
        block_table : Tensor
            (sequences, max blocks of a sequence).
        """
        block = block_table.gather(1, (length // cache.block_size)[:, None])[:, 0]
        slot_mapping = block * cache.block_size + length % cache.block_size
        cached = length + 1
        x = self.text.embed_tokens(ids)
        cos_sin, residual = self._cos_sin(x, position.expand(3, -1)), torch.zeros_like(x)
        for i in range(len(self._layers)):
            x, q, _, _ = self._qkv(i, x, residual, cos_sin, *cache.layer(i), slot_mapping)
            attended = block_attention(
                q, cache.keys[i], cache.values[i], block_table, cached, self._scale
            )
            x, residual = self._output(i, x, attended)
        return self._logits(x + residual)

    def _logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self.lm_head(normed(x, *self._final_norm)).float()
        return logits

    def _cos_sin(self, x: Tensor, positions: Tensor) -> CosSin:
        cos, sin = self.text.rotary_emb(x[None], positions[:, None])
        return cos[0], sin[0]

    def _compute_grid_positions(self, h: int, w: int) -> tuple[Tensor, Tensor, Tensor]:
        """Positions of a grid of ``h`` by ``w`` patches.

        Returns
        -------
        tuple of Tensor
            Indices of the learned embeddings to interpolate and their weights, (patches, 4) each,
            then rows and columns, (patches, 2).
        """
        tower, grid = self.tower, torch.tensor([[1, h, w]])
        corners, weights = get_vision_interpolation_indices_and_weights(
            grid,
            num_grid_per_side=math.isqrt(len(tower.pos_embed.weight)),
            mode="bilinear",
            align_corners=True,
            spatial_merge_size=tower.spatial_merge_size,
        )
        positions = get_vision_position_ids(grid, tower.spatial_merge_size)
        return corners.to(self.device), weights.to(self.device), positions.to(self.device)
