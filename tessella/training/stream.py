"""Images that come from somebody else's iterable, such as a ``torch.utils.data.DataLoader``.

Their order is the iterable's. The loop asks for a batch and gets the next images, whatever sizes
they arrive in; at the end of the iterable it begins anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, TypeGuard, runtime_checkable

import numpy as np
import torch

from tessella.errors import InputError
from tessella.tokenizers.tokenizer import check_images
from tessella.training.examples import SAMPLE, SAMPLE_BYTES, Examples, drop_labels

ONE_PASS = (
    "an iterator can be read once, and training passes over its images many times:"
    " give a list, an array, a DataLoader, or an object whose __iter__ begins anew"
)


@runtime_checkable
class IndexedItems(Protocol):
    """Gives its items by number until an IndexError, such as a ``torch.utils.data.Dataset``."""

    def __getitem__(self, index: int, /) -> object: ...


Items = Iterable[object] | IndexedItems
"""Items that can be read again and again: images, or pairs of images and labels."""


class Stream:
    """Training images of an iterable, in the order in which it gives them.

    Args:
        iterable: gives batches ``uint8 [b, h, w, c]`` or single images ``[h, w, c]``, or pairs
            (or lists) of images and labels. It can be iterated again and again.
        channels: of the images.
        size: height and width of the images; None takes those of the first ones.
        classes: of a conditional model, which needs labels; 0 for none.
        condition_dropout: share of labels replaced by the null class.

    Raises:
        InputError: when it gives no images, or other ones than the model takes.
    """

    binarize = False

    def __init__(
        self,
        iterable: Items,
        channels: int,
        size: tuple[int, int] | None,
        classes: int = 0,
        condition_dropout: float = 0.0,
    ) -> None:
        self._iterable = iterable
        self._channels = channels
        self._size = size
        self.classes = classes
        self.condition_dropout = condition_dropout
        if iter(iterable) is iterable:
            raise InputError(ONE_PASS)
        self._sample, self._count = self._first_images()
        self.rewind()

    def __len__(self) -> int:
        """Images of one pass; where the end was not seen, those that were."""
        return self._count or len(self._sample)

    @property
    def count(self) -> int | None:
        """Images of one pass, if it is known."""
        return self._count

    @property
    def pixels(self) -> bool:
        """Always images, never symbols."""
        return True

    @property
    def example_shape(self) -> tuple[int, ...]:
        """``(h, w, c)``."""
        return self._sample.example_shape

    @property
    def example_bytes(self) -> int:
        """Memory of one image."""
        return self._sample.example_bytes

    def rewind(self) -> None:
        """Begin a new pass with the next batch."""
        self._images: Iterator[tuple[torch.Tensor, torch.Tensor | None]] = iter(())
        # Images that were given and did not fit into the last batch, and their labels.
        self._rest_images = torch.empty(0, *self.example_shape, dtype=torch.uint8)
        self._rest_labels = torch.empty(0, dtype=torch.int64)

    def sample(self) -> Examples:
        """The first images, in memory, which a baseline is fitted to."""
        return self._sample

    def order(self, batch: int, seed: int) -> NextInLine:
        """Which examples each step sees: the next ones."""
        return NextInLine(batch)

    def batch(
        self,
        indices: torch.Tensor,
        generator: torch.Generator,
        device: torch.device,
        read: Sequence[torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The next images, as many as there are ``indices``, and their labels."""
        assert read is None, "an iterable gives its images itself, none are read ahead"
        # Items of any size come in; what is left over begins the next batch.
        wanted = len(indices)
        parts = [self._rest_images]
        label_parts = [self._rest_labels]
        have = len(self._rest_images)
        while have < wanted:
            images, labels = self._next()
            parts.append(images)
            if labels is not None:
                label_parts.append(labels)
            have += len(images)
        x = torch.cat(parts)
        self._rest_images = x[wanted:]
        if not self.classes:
            return x[:wanted].to(device), None
        tags = torch.cat(label_parts)
        self._rest_labels = tags[wanted:]
        dropped = drop_labels(tags[:wanted], self.classes, self.condition_dropout, generator)
        return x[:wanted].to(device), dropped.to(device)

    def _next(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        item = next(self._images, None)
        if item is None:
            # The end of a pass: another one begins.
            self._images = self._checked()
            item = next(self._images, None)
        if item is None:
            raise InputError("the images to train on came to an end, and beginning anew gave none")
        return item

    def _first_images(self) -> tuple[Examples, int | None]:
        """Images in memory, and how many one pass has; None where it was not followed that far."""
        kept: list[torch.Tensor] = []
        count = 0
        size = 0
        # An iterable may have no end, so a part of it must do for the baseline.
        for images, _ in self._checked():
            if size >= SAMPLE_BYTES or count >= SAMPLE:
                return Examples([torch.cat(kept)]), None
            kept.append(images)
            count += len(images)
            size += images.numel()
        if not count:
            raise InputError("there are no images to train on: the iterable gave none")
        return Examples([torch.cat(kept)]), count

    def _checked(self) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """One pass: images ``[b, h, w, c]`` and labels ``[b]``, checked."""
        for item in iter(self._iterable):
            images, labels = _split_item(item)
            # [b, h, w, c], or [h, w, c] of a single image
            if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 3:
                images = images[None]
            x = check_images(images, self._channels)
            # The first image decides where the model does not.
            size = (int(x.shape[1]), int(x.shape[2]))
            self._size = self._size or size
            if size != self._size:
                raise InputError(
                    f"the model takes images of {self._size[0]}x{self._size[1]}, the iterable"
                    f" gave some of {size[0]}x{size[1]}: scale or cut them before"
                )
            yield x, self._checked_labels(labels, len(x))

    def _checked_labels(self, labels: object, n: int) -> torch.Tensor | None:
        if not self.classes:
            return None
        if labels is None:
            raise InputError(
                "the model has classes: the iterable must give pairs of images and labels"
            )
        # A loader gives tensors, a list of pairs gives numbers.
        given = np.asarray(labels)
        if given.dtype.kind not in "iub":
            raise InputError(f"labels must be integers, the iterable gave {given.dtype}")
        tags = torch.as_tensor(given).long().reshape(-1)
        if len(tags) != n or int(tags.min()) < 0 or int(tags.max()) >= self.classes:
            raise InputError(f"labels must be [{n}] integers in 0..{self.classes - 1}")
        return tags


class NextInLine:
    """The order of a stream: its images as they come.

    Args:
        batch: examples of a step.
    """

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def at(self, step: int) -> torch.Tensor:
        """As many places as a step has examples; only their number counts."""
        return torch.arange(self.batch)


def is_stream(images: object) -> TypeGuard[Items]:
    """Whether images are an iterable of others' making, not an array or a list of them."""
    if isinstance(images, (np.ndarray, torch.Tensor, list, tuple, str, bytes, dict)):
        return False
    # A DataLoader has neither.
    if hasattr(images, "shape") or hasattr(images, "identity"):
        return False  # images and codes of the package, in memory or on disk
    return hasattr(images, "__iter__") or hasattr(images, "__getitem__")


def _split_item(item: object) -> tuple[object, object]:
    """Images and labels of what an iterable gave."""
    if isinstance(item, (tuple, list)):
        if len(item) == 1:
            return item[0], None
        if len(item) == 2:
            return item[0], item[1]
        raise InputError(
            f"an iterable must give images, or pairs of images and labels; it gave {len(item)}"
            " things at once"
        )
    if not isinstance(item, (np.ndarray, torch.Tensor)):
        raise InputError(
            "an iterable must give arrays of images, uint8 [b, h, w, c] or [h, w, c]; it gave"
            f" {type(item).__name__} (np.asarray(image) makes an array of a picture)"
        )
    return item, None
