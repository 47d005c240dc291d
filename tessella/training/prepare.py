"""Images, labels and model checked against each other; images encoded to codes for a prior."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tessella import data
from tessella.config import TrainConfig
from tessella.data.array_checks import check_scale
from tessella.data.hashes import image_hashes
from tessella.data.lazy_images import LazyImages
from tessella.errors import ConfigError, InputError
from tessella.grid import Grid
from tessella.models import DensityModel, Hierarchy, Prior
from tessella.models.hierarchy import pack
from tessella.pipeline import Generator, SavedModel, class_count
from tessella.pipeline.building import Network
from tessella.storage.code_store import CodeSet, cached, open_codes
from tessella.tokenizers import Tokenizer
from tessella.tokenizers.tokenizer import as_tuple, check_images
from tessella.training.examples import Examples, Variant
from tessella.training.stream import ONE_PASS, Items, Stream, is_stream
from tessella.vae import VAE

IN_MEMORY = 1 << 30
"""Bytes of codes that are read into memory as a whole; more stay on disk."""

ENCODED_AT_ONCE = 256
"""Images that are encoded together, for a prior."""

Trainable = Network
"""Models and tokenizers that can be trained."""

FOLDER_LINES = (
    "from tessella import data; from tessella.config import DataConfig; images = data.load("
    'DataConfig("folder:{path}", size="64"), "train")'
)
"""The line that loads a folder, for a message."""


@dataclass(frozen=True)
class TrainingData:
    """One split: its examples, and which images they are made of."""

    examples: Examples | Stream
    identity: Mapping[str, object]
    """Count, shape and SHA-256, as JSON values; a resumed run must have equal ones."""
    hashes: np.ndarray | None
    """A hash of each image, ``uint64 [n]``; None where images vary or are not known."""
    skipped: tuple[str, ...] = ()
    """Files that were left out."""
    seen_by_tokenizer: np.ndarray | None = None
    """Hashes of the images that a prior's tokenizer was trained on; None where it does not say."""


def check_images_argument(images: object, name: str = "images") -> None:
    """Refuse what cannot be images before anything else is done.

    Raises:
        InputError: with the line that loads a folder where a path was given.
    """
    if isinstance(images, (str, Path)):
        raise InputError(
            f"{name} must be an array uint8 [n, height, width, channels], got the path"
            f" {str(images)!r}; a folder is loaded with: {FOLDER_LINES.format(path=images)}"
        )
    # A dictionary can be iterated, but gives its keys.
    if isinstance(images, (dict, bytes, bool, int, float)) or images is None:
        raise InputError(
            f"{name} must be an array uint8 [n, height, width, channels], an ImageSet or an"
            f" iterable of such arrays, got {type(images).__name__}"
        )
    # An iterator hands out itself: there is no second pass.
    if is_stream(images) and iter(images) is images:
        raise InputError(f"{name}: {ONE_PASS}")
    if isinstance(images, (list, tuple)) and not images:
        raise InputError(f"{name} is empty: there are no images")
    if not is_stream(images) and not hasattr(images, "__len__"):
        raise InputError(
            f"{name} must be an array uint8 [n, height, width, channels], an ImageSet or an"
            f" iterable of such arrays, got {type(images).__name__}"
        )


def check_array_scale(
    model: Trainable, tokenizer: Tokenizer | None, images: object, title: str
) -> None:
    """Refuse an array whose values cannot be meant as those of 0..255.

    Raises:
        InputError: see :func:`tessella.data.array_checks.check_scale`.
    """
    # Pixels of a tokenizer, and of a prior on its codes, have no levels.
    levels = 0
    if isinstance(model, (DensityModel, VAE)) and tokenizer is None:
        levels = _image_grid(model).levels
    if isinstance(model, VAE):
        levels = model.levels
    # A list of images is an array of them; a hierarchy takes a tuple of codes.
    if isinstance(images, list) and not isinstance(model, Hierarchy):
        images = np.asarray(images)
    check_scale(images, levels, title)


def prepare(
    model: Trainable,
    images: object,
    labels: object,
    tokenizer: Tokenizer | None,
    condition_dropout: float = 0.0,
    flip: bool = False,
    binarize: bool = False,
) -> Examples:
    """Check images, labels and model against each other; encode the images for a prior.

    Args:
        model: to be trained.
        images: ``uint8 [n, h, w, c]``, or symbols or stored codes for a density model.
        labels: ``[n]`` for a conditional model, else None.
        tokenizer: of a prior.
        condition_dropout, flip, binarize: see :class:`~tessella.training.examples.Examples`.

    Raises:
        InputError, ConfigError: where they do not fit each other.
    """
    classes = class_count(model)
    if labels is not None and not classes:
        raise InputError(
            "labels were given, but the model has no classes: create it with classes=n"
        )
    if classes and labels is None:
        raise InputError("the model has classes: give labels, int64 [n]")
    tags = None
    if labels is not None:
        tags = _as_labels(labels)
    # The labels are checked after the images, whose number they must have.
    variants = _variants(model, images, tokenizer, flip)
    n = len(variants[0])
    if not n:
        raise InputError("there are no images to train on")
    if tags is not None:
        fits = tags.shape == (n,) and int(tags.min()) >= 0 and int(tags.max()) < classes
        if not fits:
            raise InputError(f"labels must be [{n}] integers in 0..{classes - 1}")
    return Examples(variants, tags, classes, flip, binarize, condition_dropout)


def prepare_stream(
    model: Trainable, images: Items, labels: object, config: TrainConfig
) -> TrainingData:
    """Training data that an iterable gives, in the order in which it gives them.

    Raises:
        InputError, ConfigError: where the images do not fit the model, or options ask for an order.
    """
    if labels is not None:
        raise InputError(
            "an iterable brings its labels itself, as pairs of images and labels: leave labels out"
        )
    if config.devices > 1:
        raise ConfigError(
            "an iterable gives its images to one process: take devices=1, or give an array"
        )
    # The stream checks each batch as it comes, so it must know what the model takes.
    grid = _image_grid(model)
    size = (grid.height, grid.width)
    classes = class_count(model)
    stream = Stream(images, grid.channels, size, classes, config.condition_dropout)
    # The first images stand for all: those of a single batch may be dark by chance.
    check_array_scale(model, None, stream.sample().variants[0], "images")
    if config.epochs and stream.count is None:
        raise ConfigError(
            "an iterable that does not end soon has no epochs: give steps= or minutes="
        )
    # No hash: nobody can say beforehand what an iterable will give.
    identity: dict[str, object] = {"source": "iterable", "shape": list(stream.example_shape)}
    if stream.count is not None:
        identity["count"] = stream.count
    return TrainingData(stream, identity, None)


def describe_data(examples: Examples, images: object) -> TrainingData:
    """Examples made of arrays or an image set, with the facts that tell which they are."""
    if isinstance(images, data.ImageSet):
        hashes = images.hashes() if getattr(images.images, "hashed", True) else None
        return TrainingData(examples, images.identity(), hashes, images.skipped)
    if isinstance(images, CodeSet):
        return TrainingData(examples, images.identity(), images.hashes())
    first = examples.variants[0]
    identity: dict[str, object] = {"count": len(first), "shape": list(examples.example_shape)}
    if isinstance(images, LazyImages):
        hashes = images.hashes if images.hashed else None
        return TrainingData(examples, identity | {"sha256": images.sha256}, hashes)
    assert isinstance(first, torch.Tensor)
    identity["sha256"] = hashlib.sha256(first.contiguous().numpy().tobytes()).hexdigest()
    # Hashes of single images serve to find overlaps; symbols have none.
    hashes = None
    if not isinstance(images, (tuple, list)):
        pixels = np.asarray(images)
        if pixels.dtype == np.uint8:
            hashes = image_hashes(pixels)
    return TrainingData(examples, identity, hashes)


def with_labels(model: Trainable, images: object, labels: object) -> tuple[object, object]:
    """Images and labels; an image set brings its labels itself, for a model that has classes."""
    if not isinstance(images, data.ImageSet):
        return images, labels
    if labels is None and class_count(model):
        labels = images.labels
    return images.images, labels


def hold_out(
    images: object, labels: object, seed: int
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, np.ndarray | None]:
    """Divide images: a tenth, chosen by the seed, is held out.

    Returns:
        Images and labels to train on, images and labels that are held out.

    Raises:
        InputError: for fewer than two images, or images that come divided by their source.
    """
    if isinstance(images, (LazyImages, data.ImageSet, CodeSet)):
        raise InputError(
            'give valid= too, for example data.load(config, "valid"):'
            " images of a source come divided"
        )
    assert isinstance(images, Sized)
    n = len(images)
    if n < 2:
        raise InputError(f"training needs at least 2 images, got {n}")
    # Drawn by the seed, then sorted: arrays keep their order, and memory is read forward.
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).numpy()
    count = max(1, n // 10)
    held = np.sort(order[:count])
    rest = np.sort(order[count:])
    array = np.asarray(images)
    if labels is None:
        return array[rest], None, array[held], None
    # Checked here, because indexing would take labels of any length that is large enough.
    tags = np.asarray(labels)
    if len(tags.shape) != 1 or len(tags) != n:
        raise InputError(f"labels must be [{n}] integers, one for each image, got {tags.shape}")
    return array[rest], tags[rest], array[held], tags[held]


def check_classes(images: data.ImageSet, held_out: data.ImageSet) -> None:
    """Check that a label means the same class in both splits."""
    ours = images.label_names
    theirs = held_out.label_names
    if ours and theirs and ours != theirs:
        raise InputError(
            f"the training images have the classes {', '.join(ours)}, the validation images"
            f" {', '.join(theirs)}: give both the same"
        )


def _as_labels(labels: object) -> torch.Tensor:
    try:
        tags = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"labels must be integers [n], got {type(labels).__name__}") from error
    if tags.is_floating_point() or tags.is_complex():
        raise InputError(f"labels must be integers [n], got {tags.dtype}")
    return tags.long()


def _image_grid(model: Trainable) -> Grid:
    """The grid of pixels that a model takes.

    Raises:
        InputError: for a hierarchy, which takes none.
    """
    if isinstance(model, SavedModel):
        return model.image_grid
    if isinstance(model, Hierarchy):
        raise InputError("a hierarchy trains on arrays: give the images as one array")
    return model.grid


def _as_prior(model: Trainable) -> Prior:
    """The model as one of symbols, which its kind says that it is."""
    assert isinstance(model, (DensityModel, Hierarchy))
    return model


def _variants(
    model: Trainable, images: object, tokenizer: Tokenizer | None, flip: bool
) -> list[Variant]:
    """The pixels or symbols of each image; of a prior also the codes of its mirror image."""
    is_prior = model.kind == "density-model"
    if isinstance(images, CodeSet):
        if tokenizer is None or not is_prior:
            raise InputError("stored codes are for a prior: give the tokenizer that made them")
        Generator(tokenizer, _as_prior(model))  # refuses a prior that does not fit
        return _of_codes(open_codes(images.path, tokenizer), flip)
    # From images in memory or on disk to what a step sees: pixels, or codes made once.
    pixels = _pixels(model, images, tokenizer)
    if pixels is None:  # symbols, already encoded
        return [_symbols(_as_prior(model), images)]
    if tokenizer is None or not is_prior:
        return [pixels]
    Generator(tokenizer, _as_prior(model))  # refuses a prior that does not fit
    # The cache knows images by their bytes, wherever they lie.
    array = pixels.cpu().numpy() if isinstance(pixels, torch.Tensor) else pixels
    kept = cached(tokenizer, array, flip)
    if kept is not None:
        return _of_codes(kept, flip)
    return _encoded(tokenizer, pixels, flip)


def _encoded(tokenizer: Tokenizer, pixels: Variant, flip: bool) -> list[Variant]:
    """The codes of images, and of their mirror images where ``flip`` is set."""
    plain: list[torch.Tensor] = []
    mirrored: list[torch.Tensor] = []
    for start in range(0, len(pixels), ENCODED_AT_ONCE):
        part = torch.as_tensor(pixels[start : start + ENCODED_AT_ONCE])  # [b, h, w, c]
        plain.append(_compact(tokenizer.encode(part), tokenizer.grids()))
        if flip:
            mirrored.append(_compact(tokenizer.encode(part.flip(2)), tokenizer.grids()))
    variants: list[Variant] = [torch.cat(plain)]
    if flip:
        variants.append(torch.cat(mirrored))
    return variants


def _of_codes(codes: CodeSet, flip: bool) -> list[Variant]:
    """Stored codes, in memory where they are few."""
    if flip and not codes.mirrored:
        raise ConfigError(
            f"data.flip needs the codes of mirrored images, and {codes.path} has none:"
            " tessella tokenize --mirrored makes them, data.flip=false does without"
        )
    stored = [codes.variant()]
    if flip:
        stored.append(codes.variant(mirrored=True))
    # Small sets are read once; of large ones each step reads its part.
    size = len(stored) * math.prod(stored[0].shape) * stored[0].dtype.itemsize
    if size > IN_MEMORY:
        return list(stored)
    return [torch.from_numpy(variant[:]) for variant in stored]


def _symbols(model: Prior, given: object) -> torch.Tensor:
    """Symbols that were given for a prior, checked."""
    # Symbols of several grids come as a tuple, coarse to fine.
    grids = model.grids if isinstance(model, Hierarchy) else (model.grid,)
    several = given if isinstance(given, (tuple, list)) else (given,)
    if len(several) != len(grids):
        raise InputError(f"give the symbols of all {len(grids)} grids, coarse to fine")
    checked = tuple(grid.check(part) for grid, part in zip(grids, several, strict=True))
    return _compact(checked if len(grids) > 1 else checked[0], grids)


def _pixels(model: Trainable, images: object, tokenizer: Tokenizer | None) -> Variant | None:
    """Images for a model, checked; None where they are symbols already."""
    if not isinstance(images, LazyImages):
        return _checked_pixels(model, images, tokenizer)
    # Of images on disk the first one is looked at; all are of one shape and type.
    _checked_pixels(model, torch.as_tensor(images[:1]), tokenizer)
    return images


def _checked_pixels(
    model: Trainable, images: object, tokenizer: Tokenizer | None
) -> torch.Tensor | None:
    """Images in memory as a tensor ``uint8 [n, h, w, c]``; None where they are symbols already."""
    # The convolutions of a tokenizer take images of any size; the other models know theirs.
    if isinstance(model, Tokenizer):
        return check_images(images, model.channels)
    if isinstance(model, Hierarchy):
        if isinstance(images, (tuple, list)):
            return None
        if tokenizer is None and _is_uint8(images):
            raise InputError(
                "a hierarchy models codes: give tokenizer=, or the codes of all its grids"
            )
    if _type_name(images).startswith("float"):
        check_images(images)  # says how to convert them
    # Another type of integers than uint8 means symbols.
    x = _as_tensor(images)
    if x.dtype != torch.uint8 and model.kind == "density-model":
        return None
    # Checked as they were given, so that a message has the line for arrays or that for tensors.
    if tokenizer is not None and model.kind == "density-model":
        check_images(images, tokenizer.channels)
        return x
    grid = _image_grid(model)
    check_images(images, grid.channels)
    if tuple(x.shape[1:3]) != (grid.height, grid.width):
        raise InputError(
            f"the model's grid is {grid}, the images are {x.shape[1]}x{x.shape[2]}x{x.shape[3]}"
        )
    return x


def _is_uint8(images: object) -> bool:
    return _type_name(images) == "uint8"


def _type_name(images: object) -> str:
    """Name of the type of an array's elements, alike for numpy and torch; empty of other things."""
    return str(getattr(images, "dtype", "")).removeprefix("torch.")


def _as_tensor(images: object) -> torch.Tensor:
    if isinstance(images, np.ndarray):
        images = np.array(images)  # a copy: torch takes no arrays that cannot be written to
    try:
        return torch.as_tensor(images)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            "images must be an array uint8 [n, height, width, channels], got"
            f" {type(images).__name__}: {error}"
        ) from error


def _compact(
    symbols: torch.Tensor | tuple[torch.Tensor, ...], grids: Sequence[Grid]
) -> torch.Tensor:
    """Symbols, those of several grids packed, in the smallest type that holds them.

    Never uint8, which is the type of images.
    """
    packed = pack(symbols) if len(grids) > 1 else as_tuple(symbols)[0]
    most = max(grid.levels for grid in grids)
    return packed.cpu().to(torch.int16 if most <= 2**15 else torch.int32)
