"""What backends make of a failing model: errors in words, and half the batch without memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qvl_lab.backends.base import Answer, Request
from qvl_lab.errors import DeviceMemoryError, ModelError, NumericalError, QvlError
from qvl_lab.models.memory import first_line, out_of_memory


def memory_shortage(work: Callable[..., object], *args: Any) -> str | None:
    """Do ``work``; what it said if memory ran out, None if it succeeded.

    Once this returns, nothing refers to the tensors of the failed call any more.

    Raises
    ------
    ModelError
        If the work fails for another reason; errors of this package pass as they are.
    """
    try:
        work(*args)
    except Exception as e:
        if not out_of_memory(e):
            raise as_model_error(e) from e
        return first_line(e)
    return None


def halving_event(tried: int, continued_with: int, failure: str, halve: bool) -> dict[str, Any]:
    """The event that a batch did not fit and smaller ones follow.

    Raises
    ------
    DeviceMemoryError
        If ``halve`` is off.
    """
    if not halve:
        raise DeviceMemoryError(f"batch of {tried}: {failure}")
    return {"event": "oom", "batch_size": tried, "continued_with": continued_with}


def as_model_error(error: Exception) -> Exception:
    """An exception of a failing model as one of this package's errors."""
    if isinstance(error, QvlError):
        return error
    return ModelError(f"the model failed: {type(error).__name__}: {error}")


def overflow(precision: str) -> str:
    """The error of a request whose logits were inf or NaN."""
    return str(
        NumericalError(
            f"the model's scores overflowed to inf or NaN in {precision}; use precision='bf16' or "
            "'fp32'"
        )
    )


def too_large(request: Request) -> Answer:
    """The answer of a request that runs out of memory even alone."""
    error = (
        f"out of memory even alone, with {request.visual_tokens:,} visual tokens; lower the "
        "resolution or the precision"
    )
    return Answer(
        id=request.item.id,
        error=error,
        visual_tokens=request.visual_tokens,
        image_size=request.size,
    )
