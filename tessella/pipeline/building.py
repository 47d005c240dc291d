"""Networks built from saved configurations that nobody vouches for.

A configuration can ask for any size, while its weights are a few kilobytes. So a network is first
built on the meta device, where tensors have shapes and no memory, and compared with the header of
the weights. Only when all names, shapes and types agree is it built for real: then the memory it
takes is in proportion to the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from tessella.errors import ArtifactError, ConfigError, TessellaError
from tessella.files import StoredTensor, TensorsHeader
from tessella.grid import Grid
from tessella.models import Hierarchy, Prior, prior_from_config
from tessella.pipeline.weights import weight_problems
from tessella.tokenizers import Tokenizer, create_tokenizer
from tessella.vae import VAE, create_vae

Network = Prior | Tokenizer | VAE
"""What one directory with weights holds."""

LARGEST_NUMBER = 1 << 20
"""Numbers in a configuration may be as large as this, and beyond it as the count of its weights."""

MOST_SYMBOLS = 1 << 28
"""Symbols of an image, at most: 16384 x 16384 of one channel."""

SPARE_BYTES = 1 << 28
"""Memory that a network may take beyond four times its weights: tables made from its sizes."""

CALLS = 10_000
CALLS_PER_TENSOR = 200
"""Calls of torch that building a network may take, and for each of its weights."""

SET_GRAD_ENABLED = torch._C._set_grad_enabled

TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Types of tensors as the headers of safetensors files name them."""


def build_tokenizer(config: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a saved configuration, with fresh weights."""
    # Values can be anything here: constructors check their types and ranges.
    return create_tokenizer(**config)


def build_vae(config: Mapping[str, Any]) -> VAE:
    """The VAE of a saved configuration, with fresh weights."""
    arguments = {name: value for name, value in config.items() if name != "name"}
    return create_vae(**arguments)


BUILDERS: dict[str, Callable[[Mapping[str, object]], Network]] = {
    "density-model": prior_from_config,
    "prior": prior_from_config,
    "tokenizer": build_tokenizer,
    "vae": build_vae,
}
"""How a network of each kind is built from the ``model`` of its ``config.json``."""


def build(kind: str, config: object, header: TensorsHeader, where: str) -> Network:
    """Build the network of a configuration, after a check that the weights fit it.

    Args:
        kind: what the network is, a key of :data:`BUILDERS`.
        config: the ``model`` of its ``config.json``.
        header: of its ``model.safetensors``.
        where: the directory, for messages.

    Returns:
        The network with fresh weights, in eval mode.

    Raises:
        ArtifactError: when the configuration is not one of this version, or the weights do not fit
            it.
    """
    outline = checked_outline(kind, config, header, f"{where}/config.json")
    problems = weight_problems(_stored_types(outline), header.tensors)
    if problems:
        raise ArtifactError(f"{where} does not fit its configuration: {'; '.join(problems)}")
    assert isinstance(config, Mapping)
    return BUILDERS[kind](config)


def checked_outline(kind: str, config: object, header: TensorsHeader, source: str) -> Network:
    """The network on the meta device, once its configuration is known to be within reason.

    Args:
        kind, config: see :func:`build`.
        header: describes the weights, whose number bounds what the network may take.
        source: where the configuration is from, for messages.

    Raises:
        ArtifactError: when no network of this version has this configuration, or it asks for more
            than the weights justify.
    """
    # The cheapest check comes first: types, numbers, shapes without memory.
    check_form(kind, config, source)
    assert isinstance(config, Mapping)
    _check_numbers(config, header, source)
    outline = outline_of(kind, config, header, source)
    _check_memory(outline, header, source)
    return outline


def check_form(kind: str, config: object, source: str) -> None:
    """Check the names and types of a configuration's entries; sizes are left to constructors.

    Raises:
        ArtifactError: naming the entry.
    """
    if not isinstance(config, Mapping):
        raise ArtifactError(f"{source}: model must be an object with a name, got {config!r:.60}")
    if not isinstance(config.get("name"), str):
        raise ArtifactError(
            f"{source}: model.name must be a string, got {config.get('name')!r:.60}"
        )
    if kind not in ("density-model", "prior"):
        return
    if "priors" in config:
        priors = config["priors"]
        if not isinstance(priors, list):
            raise ArtifactError(f"{source}: model.priors must be a list, got {priors!r:.60}")
        # A hierarchy holds density models, which are checked like any other.
        for part in priors:
            check_form(kind, part, source)
        return
    # A model of several scales has a list of grids.
    several = "grids" in config
    entries: dict[str, type] = {
        "grids" if several else "grid": list if several else Mapping,
        "head": Mapping,
        "classes": int,
        "null_class": bool,
        "sizes": Mapping,
    }
    for name, wanted in entries.items():
        value = config.get(name)
        # True is an int to Python.
        wrong_bool = isinstance(value, bool) and wanted is not bool
        if not isinstance(value, wanted) or wrong_bool:
            nouns = {list: "a list", Mapping: "an object", int: "an integer", bool: "true or false"}
            raise ArtifactError(
                f"{source}: model.{name} must be {nouns[wanted]}, got {value!r:.60}"
            )
    if not isinstance(config["head"].get("name"), str):
        raise ArtifactError(f"{source}: model.head needs a name")


def outline_of(
    kind: str, config: Mapping[str, object], header: TensorsHeader, source: str
) -> Network:
    """The network on the meta device: every tensor has its shape and takes no memory.

    Raises:
        ArtifactError: when no network of this version has this configuration.
    """
    # Without a limit, a million layers take minutes even where no tensor has memory.
    limit = CALLS + CALLS_PER_TENSOR * len(header.tensors)
    try:
        with torch.device("meta"), _LimitedCalls(limit):
            return BUILDERS[kind](config)
    except ArtifactError as error:
        raise ArtifactError(f"{source}: {error}") from None
    except (
        TessellaError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        # A name that nothing has here may well be that of a plugin.
        plugin = ""
        if isinstance(error, ConfigError) and str(error).startswith("unknown"):
            plugin = (
                "; if a plugin defines it, load that first: --plugin FILE.py, in Python"
                ' ts.load_plugin("FILE.py")'
            )
        # Values are checked by the constructors of many classes, torch's among them.
        raise ArtifactError(
            f"{source} does not describe a model this version knows: {error}{plugin}"
        ) from error


class _LimitedCalls(TorchFunctionMode):
    """Stops a construction that makes far more tensors than the weights hold."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.left = limit
        self.limit = limit

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        # Leaving torch.no_grad() is a call too: if it failed, gradients would stay off for good.
        if func is not SET_GRAD_ENABLED:
            self.left -= 1
        if self.left < 0 and func is not SET_GRAD_ENABLED:
            raise ArtifactError(
                f"a model of these sizes has far more tensors than the file of its weights "
                f"(stopped after {self.limit:,} operations)"
            )
        return func(*args, **(kwargs or {}))


def _check_numbers(config: Mapping[str, object], header: TensorsHeader, source: str) -> None:
    """Refuse numbers that no network with these weights can have."""
    weights = sum(_numbers(stored) for stored in header.tensors.values())
    limit = max(LARGEST_NUMBER, weights)
    # A size is a side of some weight, so none can exceed the count of all weights. Small files may
    # still have sizes that no weight shows, such as those of images.
    for name, value in _integers("model", config):
        if abs(value) > limit:
            raise ArtifactError(
                f"{source}: {name} is {value}, and its weights are {weights:,} numbers in all: "
                "the configuration is damaged, or not of these weights"
            )


def _integers(name: str, value: object) -> Iterator[tuple[str, int]]:
    """All integers in plain values, with the way to them."""
    if isinstance(value, int):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _integers(f"{name}.{key}", item)
    elif isinstance(value, list):
        for item in value:
            yield from _integers(name, item)


def _numbers(stored: StoredTensor) -> int:
    count = 1
    for size in stored.shape:
        count *= size
    return count


def _check_memory(outline: Network, header: TensorsHeader, source: str) -> None:
    """Refuse images and tables whose size the weights do not justify."""
    symbols = _image_symbols(outline)
    if symbols > MOST_SYMBOLS:
        raise ArtifactError(
            f"{source}: images of {symbols:,} symbols; the most that is loaded is {MOST_SYMBOLS:,}"
        )
    stored = sum(entry.stop - entry.start for entry in header.tensors.values())
    tables = 0
    # Weights are known to be as large as their file; tables are computed from sizes alone.
    for tensor in outline.buffers():
        tables += tensor.numel() * tensor.element_size()
    if tables > 4 * stored + SPARE_BYTES:
        raise ArtifactError(
            f"{source}: a model of these sizes takes {tables / 2**30:.1f} GiB beside its weights, "
            f"which are {stored / 2**20:.1f} MiB"
        )


def _image_symbols(outline: Network) -> int:
    """Symbols of an image, of the largest grid that the network describes."""
    sizes = [grid.symbols for grid in grids_of(outline)]
    if isinstance(outline, (Tokenizer, VAE)):
        sizes.append(outline.image_grid.symbols)
    return max(sizes)


def grids_of(network: Network) -> tuple[Grid, ...]:
    """The grids of symbols that a network makes or models, coarse to fine."""
    if isinstance(network, Tokenizer):
        return network.grids()
    if isinstance(network, Hierarchy):
        return network.grids
    return (network.grid,)


def _stored_types(outline: nn.Module) -> dict[str, StoredTensor]:
    """The weights of a network as the header of their file describes them."""
    described = {}
    for name, tensor in outline.state_dict().items():
        # A type that the format lacks keeps the name torch gives it, which matches nothing.
        dtype = TYPES.get(tensor.dtype, str(tensor.dtype))
        described[name] = StoredTensor(dtype, tuple(tensor.shape), 0, 0)
    return described
