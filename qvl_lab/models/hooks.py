"""Stage marks at the borders of a Qwen vision-language model's parts, by hooks.

The model is not changed, and the hooks are removed again. These stages are marked, under the names
that Qwen3-VL's parts have (Qwen2.5-VL and Qwen2-VL have no DeepStack mergers):

===============================  ==============================================================
``vision``                       the vision tower: pixels to visual tokens
``vision/patch_embed``           its first layer
``vision/merger``                the merger and every DeepStack merger, each a call
``prefill``                      from there to the first token's logits
``decode``                       from there to the last token
``prefill/layers``               the language model's layers
``decode/layers``                the same, a call each step
``prefill/lm_head``              hidden states to logits
``decode/lm_head``               the same, a call each step
``decode/sampling``              logits to the next step: choosing a token, asking whether to
                                 stop, preparing inputs
===============================  ==============================================================

What the article calls fusion is ``vision/merger``, and the DeepStack features' way into the first
layers, which ``prefill/layers`` includes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import LogitsProcessor

from qvl_lab.probe.stages import begin, end


class StepWatch(LogitsProcessor):  # type: ignore[misc]
    """Watches every step's logits: marks the end of the prefill, and notes inf and NaN per row.

    The maximum of a row is inf or NaN if any of its logits is, so one small kernel a step suffices,
    and nothing waits for it. A logits processor stays outside what ``generate`` compiles.

    Parameters
    ----------
    input_ids : Tensor
        (batch, length) of the prompts.
    sampling : bool
        Also mark where sampling begins; :func:`marks` with ``steps`` ends it.

    Attributes
    ----------
    finite : Tensor
        (batch,) bool.
    steps : int
        Steps so far, which is the number of tokens generated a row.
    """

    def __init__(self, input_ids: torch.Tensor, *, sampling: bool = True) -> None:
        self.finite = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
        self.steps, self._sampling = 0, sampling

    def __call__(self, input_ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        self.finite &= torch.isfinite(logits.amax(-1))
        if not self.steps:
            end("prefill", gpu=True)
            begin("decode", gpu=True)
        self.steps += 1
        if self._sampling:
            begin("sampling", gpu=True)
        return logits


@contextmanager
def marks(model: Any, *, steps: bool = True, **amounts: dict[str, int]) -> Iterator[None]:
    """Mark the parts of a model while the block runs.

    Parameters
    ----------
    model : PreTrainedModel
        Any of transformers' Qwen vision-language models.
    steps : bool
        Also mark what happens in every step. Off where ``generate`` compiles the step: a hook
        inside would be compiled with it.
    amounts : dict
        By stage, the amounts that are counted in it: ``vision={"tokens": 1024}``.
    """
    handles: list[Any] = []
    try:
        _hook(model, steps, amounts, handles)
        yield
    except BaseException:
        for name in ("vision", "prefill", "decode"):  # what comes next is not part of them
            end(name)
        raise
    finally:
        for handle in handles:
            handle.remove()


def _hook(model: Any, steps: bool, amounts: dict[str, dict[str, int]], handles: list[Any]) -> None:
    """Register the hooks, and add their handles, which remove them, to ``handles``."""

    def around(module: Any, name: str) -> None:
        handles.append(module.register_forward_pre_hook(lambda *_: begin(name, gpu=True)))
        handles.append(module.register_forward_hook(lambda *_: end(name, gpu=True)))

    def vision(*_: Any) -> None:
        begin("vision", gpu=True, **amounts.get("vision", {}))

    def prefill(*_: Any) -> None:  # it starts where the vision tower ends
        end("vision", gpu=True)
        begin("prefill", gpu=True, **amounts.get("prefill", {}))

    tower = model.model.visual
    handles.append(tower.register_forward_pre_hook(vision))
    for name in ("patch_embed", "merger"):
        around(getattr(tower, name), name)
    for merger in getattr(tower, "deepstack_merger_list", ()):
        around(merger, "merger")
    handles.append(tower.register_forward_hook(prefill))
    if steps:
        handles.append(model.register_forward_pre_hook(lambda *_: end("sampling", gpu=True)))
        around(model.model.language_model, "layers")
        around(model.lm_head, "lm_head")
