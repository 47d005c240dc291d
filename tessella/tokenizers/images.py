"""Images that a notebook shows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch

from tessella.files import pictures

SHOWN = 64
"""Images of a sheet, at most; a notebook keeps every sheet that it shows."""


class Images(torch.Tensor):
    """A tensor ``uint8 [n, h, w, c]`` of images that a notebook shows as a sheet.

    It is a tensor like any other: what is computed from it is a plain tensor, and so is what is
    saved of it. A part of it that still is images, such as ``images[:4]``, is shown too.
    """

    @classmethod
    def of(cls, images: torch.Tensor) -> Images:
        """The same images, in the same memory."""
        return images.as_subclass(cls)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    def __getitem__(self, place: Any) -> torch.Tensor:
        part = self.plain()[place]
        is_images = part.dim() == 4 and part.shape[1:] == self.shape[1:]
        return Images.of(part) if is_images else part

    def __reduce_ex__(self, protocol: Any) -> Any:
        # A file of images loads where this class is unknown, or not allowed.
        return self.plain().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Images:
        return Images.of(copy.deepcopy(self.plain(), memo))

    def plain(self) -> torch.Tensor:
        """The same images as a plain tensor, in the same memory."""
        return self.as_subclass(torch.Tensor)

    def _repr_png_(self) -> bytes | None:
        """A sheet of the first images as PNG; None of what is no image.

        IPython looks for a method of this name.
        """
        is_images = self.dtype == torch.uint8 and self.dim() == 4 and self.shape[-1] in (1, 3, 4)
        if not is_images or not len(self):
            return None
        return pictures.png(pictures.sheet(self.plain()[:SHOWN].cpu().numpy()))
