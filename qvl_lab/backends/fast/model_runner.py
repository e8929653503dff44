"""Runs the scheduler's steps on the device: from token ids to tensors, logits and chosen tokens."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import torch
from torch import Tensor

from qvl_lab.backends.fast.block_manager import Copy
from qvl_lab.backends.fast.cuda_graphs import CudaGraphRunner
from qvl_lab.backends.fast.input_batch import InputBatch, row_header
from qvl_lab.backends.fast.model.attention import Lengths
from qvl_lab.backends.fast.model.qwen3_vl import PackedPrompts, Qwen3VLModel
from qvl_lab.backends.fast.patchify import Patchify
from qvl_lab.backends.fast.scheduler import Chunk
from qvl_lab.backends.fast.sequence import Sequence
from qvl_lab.backends.processor import InputProcessor
from qvl_lab.config import Fast
from qvl_lab.models.load import base_dtype
from qvl_lab.probe.stages import stage


class ModelRunner:
    """The model, its key-value cache and the batch of running sequences on one device.

    Parameters
    ----------
    blocks, max_blocks : int
        Blocks of the cache, and the most blocks of one sequence.
    """

    def __init__(self, processor: InputProcessor, spec: Fast, blocks: int, max_blocks: int) -> None:
        loaded = processor.loaded
        self.device, self._block_size, self._max_blocks = loaded.device, spec.block_size, max_blocks
        self._merge, self._null_block = loaded.image_processor.merge_size, blocks
        self.model = Qwen3VLModel(loaded.model, self._to_device, spec.fused_kernels)
        self.cache = self.model.allocate_cache(blocks + 1, spec.block_size)
        suppressed = list(loaded.model.generation_config.suppress_tokens or [])
        self._batch = InputBatch(
            self.model,
            self.cache,
            spec.most_at_once,
            max_blocks,
            blocks,
            processor.stop_token_ids,
            suppressed,
        )
        # how experts are called depends on what was routed to them, which a graph cannot follow
        graphs = spec.cuda_graphs and "moe" not in loaded.model.config.model_type
        self._decode = CudaGraphRunner(self._batch.decode, spec.most_at_once, graphs, self.device)
        self._decode_sampled = CudaGraphRunner(
            self._batch.decode_sampled, spec.most_at_once, False, self.device
        )
        self.patchify = Patchify(loaded.image_processor, base_dtype(loaded.spec), self.device)
        self._last_slots: tuple[list[int], Tensor] = [], torch.empty(0)

    def record(self) -> None:
        """Compile the model and record CUDA graphs where they are in use.

        It has to be called before the first request.
        """
        if self.model.fused:
            self.model.warm_up(self.cache, self._null_block * self._block_size)
        self._decode.record()

    def copy_blocks(self, copies: SequenceOf[Copy]) -> None:
        """Duplicate blocks of the cache, one after the other."""
        for copy in copies:
            for half in (self.cache.keys, self.cache.values):
                half[:, copy.target].copy_(half[:, copy.source])

    def zero_blocks(self, blocks: SequenceOf[int]) -> None:
        """Zero blocks that hold inf or NaN, which an attention mask does not keep out."""
        index = self._to_device(list(blocks), torch.int64)
        for half in (self.cache.keys, self.cache.values):
            half.index_fill_(1, index, 0)

    def encode_images(self, pixels: SequenceOf[Tensor], sequences: SequenceOf[Sequence]) -> None:
        """Set the features of sequences from their images, (height, width, 3 or 4) uint8 each."""
        with stage("preprocess", gpu=True, bytes=sum(p.nbytes for p in pixels)):
            patches = self.patchify(pixels)
        grids = [sequence.grid for sequence in sequences]
        counts = [len(sequence.image_tokens) for sequence in sequences]
        with stage("vision", gpu=True, tokens=sum(counts)):
            features = self.model.encode_images(patches, grids)
        for sequence, own in zip(sequences, torch.split(features, counts, 1), strict=True):
            sequence.features = own

    def prefill(self, chunks: SequenceOf[Chunk]) -> Tensor | None:
        """Compute chunks of prompts.

        Returns
        -------
        Tensor or None
            On the device, the first token of each sequence whose prompt ends with its chunk; None
            if no prompt does.
        """
        ended = [chunk.sequence for chunk in chunks if chunk.last]
        with stage("prefill", gpu=True, tokens=sum(map(len, chunks))):
            logits = self.model.prefill(self._pack(chunks), self.cache)
            return self._first_tokens(logits, ended) if ended else None

    def decode(self, sequences: SequenceOf[Sequence], plain: bool) -> Tensor:
        """Generate one token for each sequence, on the device, valid until the next step.

        ``plain`` says that the sampling parameters of all of them are plain greedy.
        """
        slots = [_slot(sequence) for sequence in sequences]
        if self._last_slots[0] != slots:
            self._last_slots = slots, self._to_device(slots, torch.int64)
        if self.device.type == "cpu":
            self._batch.used_blocks = max(len(sequence.block_table) for sequence in sequences)
        with stage("decode", gpu=True, tokens=len(slots)):
            return (self._decode if plain else self._decode_sampled)(self._last_slots[1])

    def update_block_tables(self, sequences: SequenceOf[Sequence]) -> None:
        """Bring the block tables of sequences to the device."""
        if sequences:
            slots = self._to_device([_slot(s) for s in sequences], torch.int64)
            blocks = self._to_device([b for s in sequences for b in self._padded(s)], torch.int64)
            self._batch.set_block_table(slots, blocks.view(len(sequences), -1))

    def _pack(self, chunks: SequenceOf[Chunk]) -> PackedPrompts:
        """The inputs of a forward pass over prompts, brought to the device in one transfer."""
        has_context = any(chunk.start for chunk in chunks)
        names = "ids", "positions", "slot_mapping", "image_index", "context_slots", "last"
        parts: dict[str, list[Tensor]] = {name: [] for name in names}
        features, first = [], 0
        for chunk in chunks:
            sequence, start, stop = chunk.sequence, chunk.start, chunk.stop
            image = sequence.image_tokens
            slots = self._cache_slots(sequence, stop)
            parts["ids"].append(torch.tensor(sequence.token_ids[start:stop]))
            parts["positions"].append(positions(sequence, start, stop, self._merge))
            parts["slot_mapping"].append(slots[start:])
            low, high = (min(max(n, image.start), image.stop) for n in (start, stop))
            if low < high:
                assert sequence.features is not None
                parts["image_index"].append(torch.arange(low, high) - start + first)
                own = slice(low - image.start, high - image.start)
                features.append(sequence.features[:, own])
            parts["context_slots"].append(slots if has_context else slots[:0])
            first += stop - start
            parts["last"].append(torch.tensor([first - 1] if chunk.last else [], dtype=torch.int64))
        lengths = Lengths.of(
            [len(chunk) for chunk in chunks],
            [chunk.stop for chunk in chunks],
            causal=True,
            to_device=None if self.device.type == "cpu" else self._to_device,
        )
        packed = self._transfer({name: _cat(tensors) for name, tensors in parts.items()})
        return PackedPrompts(
            ids=packed["ids"],
            positions=packed["positions"].view(3, -1),
            slot_mapping=packed["slot_mapping"],
            image_index=packed["image_index"],
            features=torch.cat(features, 1) if features else self._no_features(),
            lengths=lengths,
            context_slots=packed["context_slots"] if has_context else None,
            last=packed["last"],
        )

    def _first_tokens(self, logits: Tensor, ended: SequenceOf[Sequence]) -> Tensor:
        """Add sequences whose prompt ends here to the batch, and choose their first tokens."""
        state: list[int] = []
        floats: list[list[float]] = []
        for sequence in ended:
            length, sampling = sequence.num_prefill_tokens, sequence.sampling
            generated = length - sequence.num_prompt_tokens
            position = length - _position_shift(sequence, self._merge)
            state += row_header(0, length, position, generated, sampling)
            state += self._padded(sequence)
            floats.append([sampling.temperature, sampling.top_p, sampling.repetition_penalty])
            if sampling.repetition_penalty != 1:
                ids = self._to_device(sequence.token_ids[:length], torch.int64)
                self._batch.penalise(_slot(sequence), ids, logits.shape[1])
        slots = self._to_device([_slot(sequence) for sequence in ended], torch.int64)
        rows = self._to_device(state, torch.int64).view(len(ended), -1)
        self._batch.add(slots, rows, self._pinned_to_device(torch.tensor(floats)))
        plain = all(sequence.sampling.is_plain_greedy for sequence in ended)
        return self._batch.first_tokens(logits, slots, plain)

    def _cache_slots(self, sequence: Sequence, stop: int) -> Tensor:
        """The slots of the flattened cache that hold a sequence's first ``stop`` tokens."""
        token = torch.arange(stop)
        blocks, size = torch.tensor(sequence.block_table), self._block_size
        return blocks[token // size] * size + token % size

    def _padded(self, sequence: Sequence) -> list[int]:
        """A sequence's block table, padded to the most blocks of one."""
        return sequence.block_table + [self._null_block] * (
            self._max_blocks - len(sequence.block_table)
        )

    def _no_features(self) -> Tensor:
        model = self.model
        return torch.empty(model.feature_levels, 0, 0, dtype=model.dtype, device=self.device)

    def _transfer(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Bring int64 tensors to the device in one transfer; they come back flat."""
        flat = self._pinned_to_device(torch.cat([t.flatten() for t in tensors.values()]))
        parts = torch.split(flat, [t.numel() for t in tensors.values()])
        return dict(zip(tensors, parts, strict=True))

    def _to_device(self, values: list[int], dtype: torch.dtype) -> Tensor:
        return self._pinned_to_device(torch.tensor(values, dtype=dtype))

    def _pinned_to_device(self, tensor: Tensor) -> Tensor:
        """Copy a tensor to the device through pinned memory, so that the CPU does not wait."""
        if self.device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)


def _cat(tensors: list[Tensor]) -> Tensor:
    return torch.cat(tensors, -1) if tensors else torch.empty(0, dtype=torch.int64)


def _slot(sequence: Sequence) -> int:
    assert sequence.slot is not None
    return sequence.slot


def positions(sequence: Sequence, start: int, stop: int, merge: int) -> Tensor:
    """Time, row and column of the tokens from ``start`` to ``stop``, (3, tokens).

    Text counts on; an image's tokens share its time, and the text after it goes on where the
    longer side ends. Source: ``get_rope_index`` of transformers' Qwen3-VL.
    """
    image = sequence.image_tokens
    place = torch.arange(start, stop)
    inside = (place >= image.start) & (place < image.stop)
    after = place - torch.where(place >= image.stop, _position_shift(sequence, merge), 0)
    columns = sequence.grid[1] // merge
    at = place - image.start
    row, column = (torch.where(inside, n, 0) for n in (at // columns, at % columns))
    time = torch.where(inside, image.start, after)
    return torch.stack([time, time + row, time + column])


def _position_shift(sequence: Sequence, merge: int) -> int:
    """How much smaller the position of a token after the image is than its place."""
    return len(sequence.image_tokens) - max(sequence.grid) // merge
