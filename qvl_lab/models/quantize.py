"""Quantised weights: int8 by torchao, and 8-bit floats."""

from __future__ import annotations

from typing import Any

import torch

from qvl_lab.errors import PrecisionError
from qvl_lab.models.linear import quantize_fp8


def quantize(model: Any, precision: str) -> Any:
    """Quantise the linear layers of the language model, and return the model.

    Precisions other than "int8" and "fp8" leave it as it is.

    Raises
    ------
    PrecisionError
        For a mixture of experts, or where torchao is not installed.
    """
    if precision not in ("int8", "fp8"):
        return model
    if "moe" in model.config.model_type:
        raise PrecisionError(
            f"{precision} does not reach the experts of a mixture-of-experts model yet, which "
            "are most of it; use precision='bf16'"
        )
    if precision == "fp8":
        quantize_fp8(model.model.language_model)
        return model
    torchao = torchao_quantization()

    def in_language_model(module: torch.nn.Module, name: str) -> bool:
        return isinstance(module, torch.nn.Linear) and ".language_model." in f".{name}"

    torchao.quantize_(model, torchao.Int8WeightOnlyConfig(), filter_fn=in_language_model)
    return model


def torchao_quantization() -> Any:
    """The module ``torchao.quantization``.

    Raises
    ------
    PrecisionError
        If torchao is not installed.
    """
    try:
        import torchao.quantization
    except ImportError as e:
        raise PrecisionError("precision 'int8' needs torchao: pip install 'qvl-lab[int8]'") from e
    return torchao.quantization
