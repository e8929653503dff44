"""Peak memory as torch's allocator saw it."""

from __future__ import annotations


def reset_peak(device: str) -> None:
    """Start a new peak on a CUDA device; elsewhere there is nothing to reset."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: str) -> dict[str, int | None]:
    """Peak bytes since :func:`reset_peak`: ``allocated`` by tensors, ``reserved`` from the driver.

    None off CUDA, where torch keeps no count.
    """
    if not device.startswith("cuda"):
        return {"allocated": None, "reserved": None}
    import torch

    return {
        "allocated": torch.cuda.max_memory_allocated(device),
        "reserved": torch.cuda.max_memory_reserved(device),
    }
