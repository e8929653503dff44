"""Pixels to patches on the device.

Normalising and cutting are a few operations on the device, on bytes a quarter of the size that
floats would have.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor


class Patchify:
    """Cuts pixels into the patches that the vision tower takes, normalised as its processor does.

    Parameters
    ----------
    processor : image processor of transformers
        Has ``image_mean``, ``image_std``, ``rescale_factor``, ``patch_size``, ``merge_size``.
    dtype : torch.dtype
        Of the patches.
    """

    def __init__(self, processor: Any, dtype: torch.dtype, device: torch.device) -> None:
        self._side, self._merge, self._dtype = processor.patch_size, processor.merge_size, dtype
        self._device = device
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=device)
            for values in (processor.image_mean, processor.image_std)
        )
        self._scale = processor.rescale_factor / std
        self._shift = mean / std

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches of an image of (width, height)."""
        return size[1] // self._side, size[0] // self._side

    def __call__(self, images: Sequence[Tensor]) -> Tensor:
        """Pixels of images to (patches, 3 * side * side), four of a token together.

        Each image is (height, width, 3 or 4) uint8. Neighbours of one size are cut together.
        """
        runs = [list(run) for _, run in groupby(images, lambda pixels: pixels.shape)]
        return torch.cat([self._cut(run) for run in runs])

    def _cut(self, images: list[Tensor]) -> Tensor:
        """Patches of images of one size."""
        rows, columns = (n // self._side // self._merge for n in images[0].shape[:2])
        here = [pixels.to(self._device, non_blocking=True) for pixels in images]
        x = torch.stack(here)[..., :3].float() * self._scale - self._shift
        x = x.view(-1, rows, self._merge, self._side, columns, self._merge, self._side, 3)
        # (image, token row, token column, row and column in the token, channel, y, x)
        x = x.permute(0, 1, 4, 2, 5, 7, 3, 6)
        patches: Tensor = x.flatten(5).flatten(0, 4).to(self._dtype)
        return patches
