"""From a step of the scheduler to tensors, through the network, to tokens on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qvl_lab.backends.fast.cuda_graphs import CudaGraphRunner
from qvl_lab.backends.fast.decode_pool import Patches
from qvl_lab.backends.fast.input_batch import InputBatch, row_of
from qvl_lab.backends.fast.model.attention import Lengths
from qvl_lab.backends.fast.model.qwen3_vl import Prompts, Qwen3VLModel
from qvl_lab.backends.fast.scheduler import Chunk, Copy
from qvl_lab.backends.fast.scheduler import Sequence as Scheduled
from qvl_lab.backends.processor import InputProcessor
from qvl_lab.config import EngineSpec, SamplingParams
from qvl_lab.models.load import base_dtype
from qvl_lab.probe.stages import stage


@dataclass
class Prompt:
    """A request's tokens, and where among them its image is.

    Attributes
    ----------
    ids : list of int
        All tokens to read, the image's placeholders among them; generated ones are appended when
        a sequence has to be read again.
    image : range
        Places of the image's tokens.
    grid : (int, int)
        Rows and columns of patches.
    generated : int
        How many of ``ids`` were generated.
    features : Tensor or None
        (1 + DeepStack layers, visual tokens, hidden), while they are needed.
    """

    ids: list[int]
    image: range
    grid: tuple[int, int]
    sampling: SamplingParams
    generated: int = 0
    features: Tensor | None = None

    def positions(self, start: int, stop: int, merge: int) -> Tensor:
        """Time, row and column of the tokens from ``start`` to ``stop``, (3, tokens).

        Text counts on; an image's tokens share its time, and the text after it goes on where
        the longer side ends. Source: ``get_rope_index`` of transformers' Qwen3-VL.
        """
        place = torch.arange(start, stop)
        inside = (place >= self.image.start) & (place < self.image.stop)
        after = place - torch.where(place >= self.image.stop, self.shift(merge), 0)
        columns = self.grid[1] // merge
        at = place - self.image.start
        row, column = (torch.where(inside, n, 0) for n in (at // columns, at % columns))
        time = torch.where(inside, self.image.start, after)
        return torch.stack([time, time + row, time + column])

    def shift(self, merge: int) -> int:
        """How much smaller the position of a token after the image is than its place."""
        return len(self.image) - max(self.grid) // merge


class ModelRunner:
    """The device's side of an engine: network, cache, slots.

    Parameters
    ----------
    blocks, width : int
        Blocks of the cache, most blocks of one sequence.
    """

    def __init__(self, reader: InputProcessor, spec: EngineSpec, blocks: int, width: int) -> None:
        loaded = reader.loaded
        self.device, self._block_size, self._width = loaded.device, spec.block_size, width
        self._merge, self._nowhere = loaded.image_processor.merge_size, blocks
        self.network = Qwen3VLModel(loaded.model, self._put, spec.fused_kernels)
        self.cache = self.network.key_values(blocks + 1, spec.block_size)
        suppressed = list(loaded.model.generation_config.suppress_tokens or [])
        self._slots = InputBatch(
            self.network, self.cache, spec.batch_size, width, blocks, reader.stops, suppressed
        )
        # how experts are called depends on what was routed to them, which a graph cannot follow
        graphs = spec.cuda_graphs and "moe" not in loaded.model.config.model_type
        self._step = CudaGraphRunner(self._slots.step, spec.batch_size, graphs, self.device)
        self._sampled = CudaGraphRunner(
            self._slots.sampled_step, spec.batch_size, False, self.device
        )
        self.patches = Patches(loaded.image_processor, base_dtype(loaded.spec), self.device)
        self._rows: tuple[list[int], Tensor] = [], torch.empty(0)

    def record(self) -> None:
        """Compile, and record CUDA graphs, where that is done; before the first request."""
        if self.network.fused:
            self.network.warm_up(self.cache, self._nowhere * self._block_size)
        self._step.record()

    def copy(self, copies: Sequence[Copy]) -> None:
        """Duplicate blocks, one after the other."""
        for copy in copies:
            for half in (self.cache.keys, self.cache.values):
                half[:, copy.target].copy_(half[:, copy.source])

    def clear(self, blocks: Sequence[int]) -> None:
        """Zero blocks that hold inf or NaN, which a mask does not keep out."""
        at = self._put(list(blocks), torch.int64)
        for half in (self.cache.keys, self.cache.values):
            half.index_fill_(1, at, 0)

    def see(self, pixels: Sequence[Tensor], prompts: Sequence[Prompt]) -> None:
        """Give prompts the features of their images, (height, width, 3 or 4) uint8 each."""
        with stage("preprocess", gpu=True, bytes=sum(p.nbytes for p in pixels)):
            patches = self.patches(pixels)
        grids = [prompt.grid for prompt in prompts]
        counts = [len(prompt.image) for prompt in prompts]
        with stage("vision", gpu=True, tokens=sum(counts)):
            features = self.network.see(patches, grids)
        for prompt, own in zip(prompts, torch.split(features, counts, 1), strict=True):
            prompt.features = own

    def read(self, chunks: Sequence[Chunk], prompts: Sequence[Prompt]) -> Tensor | None:
        """Read chunks of prompts; the tokens after those that end, on the device."""
        pairs = list(zip(chunks, prompts, strict=True))
        ended = [(chunk.sequence, prompt) for chunk, prompt in pairs if chunk.last]
        with stage("prefill", gpu=True, tokens=sum(c.stop - c.start for c in chunks)):
            scores = self.network.read(self._batch(pairs), self.cache)
            return self._first(scores, ended) if ended else None

    def step(self, sequences: Sequence[Scheduled], sampled: bool) -> Tensor:
        """One more token for each sequence, on the device, valid until the next step."""
        slots = [_slot(sequence) for sequence in sequences]
        if self._rows[0] != slots:
            self._rows = slots, self._put(slots, torch.int64)
        if self.device.type == "cpu":
            self._slots.used_width = max(len(sequence.blocks) for sequence in sequences)
        with stage("decode", gpu=True, tokens=len(slots)):
            return (self._sampled if sampled else self._step)(self._rows[1])

    def grow(self, sequences: Sequence[Scheduled]) -> None:
        """Tell the device which blocks sequences have now."""
        if sequences:
            rows = self._put([_slot(s) for s in sequences], torch.int64)
            blocks = self._put([b for s in sequences for b in self._row(s)], torch.int64)
            self._slots.put_blocks(rows, blocks.view(len(sequences), -1))

    def _batch(self, pairs: Sequence[tuple[Chunk, Prompt]]) -> Prompts:
        """All tensors of a forward pass over prompts, brought to the device in one piece."""
        context = any(chunk.start for chunk, _ in pairs)
        parts: dict[str, list[Tensor]] = {
            name: [] for name in ("ids", "positions", "places", "images", "context", "last")
        }
        features, first = [], 0
        for chunk, prompt in pairs:
            start, stop = chunk.start, chunk.stop
            places = self._places(chunk.sequence, stop)
            parts["ids"].append(torch.tensor(prompt.ids[start:stop]))
            parts["positions"].append(prompt.positions(start, stop, self._merge))
            parts["places"].append(places[start:])
            low, high = (min(max(n, prompt.image.start), prompt.image.stop) for n in (start, stop))
            if low < high:
                assert prompt.features is not None
                parts["images"].append(torch.arange(low, high) - start + first)
                own = slice(low - prompt.image.start, high - prompt.image.start)
                features.append(prompt.features[:, own])
            parts["context"].append(places if context else places[:0])
            first += stop - start
            parts["last"].append(torch.tensor([first - 1] if chunk.last else [], dtype=torch.int64))
        lengths = Lengths.of(
            [chunk.stop - chunk.start for chunk, _ in pairs],
            [chunk.stop for chunk, _ in pairs],
            causal=True,
            put=None if self.device.type == "cpu" else self._put,
        )
        found = self._together({name: _cat(tensors) for name, tensors in parts.items()})
        return Prompts(
            ids=found["ids"],
            positions=found["positions"].view(3, -1),
            places=found["places"],
            image_places=found["images"],
            features=torch.cat(features, 1) if features else self._no_features(),
            lengths=lengths,
            context=found["context"] if context else None,
            last=found["last"],
        )

    def _first(self, scores: Tensor, ended: Sequence[tuple[Scheduled, Prompt]]) -> Tensor:
        """Put sequences whose prompt is read into their slots, and choose their first tokens."""
        state: list[int] = []
        warmth: list[list[float]] = []
        for sequence, prompt in ended:
            length, sampling = len(prompt.ids), prompt.sampling
            position = length - prompt.shift(self._merge)
            state += row_of(0, length, position, prompt.generated, sampling)
            state += self._row(sequence)
            warmth.append([sampling.temperature, sampling.top_p])
        rows = self._put([_slot(sequence) for sequence, _ in ended], torch.int64)
        placed = self._put(state, torch.int64).view(len(ended), -1)
        self._slots.put(rows, placed, self._to_device(torch.tensor(warmth)))
        sampled = any(prompt.sampling.do_sample for _, prompt in ended)
        return self._slots.first(scores, rows, sampled)

    def _places(self, sequence: Scheduled, stop: int) -> Tensor:
        """Where in the flat cache the first ``stop`` tokens lie."""
        place = torch.arange(stop)
        blocks = torch.tensor(sequence.blocks)
        size = self._block_size
        return blocks[place // size] * size + place % size

    def _row(self, sequence: Scheduled) -> list[int]:
        return sequence.blocks + [self._nowhere] * (self._width - len(sequence.blocks))

    def _no_features(self) -> Tensor:
        network = self.network
        return torch.empty(network.depth, 0, 0, dtype=network.dtype, device=self.device)

    def _together(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of int64 to the device in one transfer."""
        flat = self._to_device(torch.cat([t.flatten() for t in tensors.values()]))
        parts = torch.split(flat, [t.numel() for t in tensors.values()])
        return dict(zip(tensors, parts, strict=True))

    def _put(self, values: list[int], dtype: torch.dtype) -> Tensor:
        return self._to_device(torch.tensor(values, dtype=dtype))

    def _to_device(self, tensor: Tensor) -> Tensor:
        """Without waiting: from pinned memory, which the copy reads when its turn comes."""
        if self.device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)


def _cat(tensors: list[Tensor]) -> Tensor:
    return torch.cat(tensors, -1) if tensors else torch.empty(0, dtype=torch.int64)


def _slot(sequence: Any) -> int:
    slot: int = sequence.slot
    return slot
