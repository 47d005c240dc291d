"""Turn a checkpoint of another project into a saved model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from tessella import files
from tessella.errors import ConfigError, InputError, unknown
from tessella.exchange.checkpoints import Facts, ForeignCheckpoint, read_checkpoint
from tessella.exchange.layouts import LAYOUTS, ForeignLayout
from tessella.exchange.layouts.foreign_layout import Origin, Tensors, shape_of, some
from tessella.exchange.layouts.gpt_layouts import GRID_FACT, square_side
from tessella.files import StoredTensor, TensorsHeader
from tessella.models import DensityModel, Prior
from tessella.pipeline import load_model, load_weights, pixel_generator
from tessella.pipeline.building import BUILDERS, TYPES, Network, checked_outline
from tessella.pipeline.saving import save_generator, save_model, save_prior, write_card
from tessella.tokenizers import Tokenizer
from tessella.tokenizers.vqgan import VQGAN

TRANSFORMER = "transformer."
FIRST_STAGE = "first_stage_model."
"""Prefixes of the two halves in a ``Net2NetTransformer`` of taming-transformers."""


@dataclass(frozen=True)
class Imported:
    """What an import made.

    Args:
        kind: kind of the saved model: ``tokenizer``, ``density-model``, ``generator`` or ``prior``.
        networks: its networks by role.
    """

    kind: str
    networks: dict[str, Network]


def layout_of(kind: str) -> ForeignLayout:
    """The layout of a kind of checkpoint.

    Raises:
        InputError: for an unknown kind; the message lists the known ones.
    """
    if kind not in LAYOUTS:
        raise InputError(unknown("kind of checkpoint", kind, LAYOUTS))
    return LAYOUTS[kind]


def convert(kind: str, tensors: Tensors, facts: Mapping[str, object] | None = None) -> Network:
    """The network that the tensors of another project's model become.

    Sizes are inferred from names and shapes, and compared with all tensors before the network is
    built.

    Args:
        kind: a key of :data:`~tessella.exchange.layouts.LAYOUTS`.
        tensors: by the names they have there.
        facts: what tensors do not show, under the names that the project uses; see
            ``known_facts`` of the layout. Others are ignored.

    Returns:
        A tokenizer, or a density model, in eval mode, float32.

    Raises:
        InputError: for an unknown kind.
        ConfigError: naming tensors that are missing, unknown or of another shape, or a fact that is
            missing or cannot be.
        ArtifactError: when sizes or weights cannot be those of a network.
    """
    layout = layout_of(kind)
    given = {name: value for name, value in tensors.items() if not layout.is_ignored(name)}
    known: Facts = dict(facts or {})
    try:
        config = layout.config(tensors, known)
        outline = checked_outline(layout.network, config, _header(given), kind)
        origins = layout.origins(outline, given, known)
        _check_names(origins, given)
        _check_shapes(origins, given, outline.state_dict())
        layout.check(tensors)
    except ConfigError as error:
        raise ConfigError(f"these tensors are not those of {layout.about}: {error}") from error
    network = BUILDERS[layout.network](config)
    wanted = network.state_dict()
    converted: dict[str, torch.Tensor] = {}
    for ours, origin in origins.items():
        # Weights are computed with in float32, whatever they are stored as.
        parts = [given[name].float() for name in origin.names]
        converted[ours] = origin.convert(parts).to(wanted[ours].dtype)
    load_weights(network, converted, kind)
    return network.eval()


def import_checkpoint(
    kind: str,
    checkpoint: Path | str,
    out: Path | str,
    *,
    tokenizer: Path | str | None = None,
    facts: Mapping[str, object] | None = None,
    prefix: str = "",
    force: bool = False,
) -> Imported:
    """Read a checkpoint of another project, and save the model that it becomes.

    Args:
        kind: a key of :data:`~tessella.exchange.layouts.LAYOUTS`.
        checkpoint: the file, or a folder with it.
        out: directory of the saved model.
        tokenizer: run of the tokenizer whose codes a prior describes. With it, the result draws
            images; without it, a prior is saved by itself.
        facts: what tensors do not show, see :func:`convert`. They come before those that the
            checkpoint states itself.
        prefix: take only tensors whose names begin with this, and leave it away.
        force: write into a directory that holds something else.

    Raises:
        InputError: for an unknown kind or fact, or an output that must not be replaced.
        ConfigError, ArtifactError: see :func:`convert`; nothing is written then.
    """
    layout = layout_of(kind)
    _check_facts(layout, facts or {})
    if tokenizer is not None and layout.network != "prior":
        raise InputError(f"{kind} is no prior on codes: leave the tokenizer out")
    files.check_replaceable(out, force)
    read = read_checkpoint(checkpoint)
    networks = _networks(layout, read.below(prefix), dict(facts or {}), tokenizer)
    kind_saved = _save(networks, layout, Path(out), read.path)
    return Imported(kind_saved, networks)


def _check_facts(layout: ForeignLayout, facts: Mapping[str, object]) -> None:
    """Refuse facts that a layout does not ask for."""
    for name in facts:
        if name not in layout.known_facts:
            raise InputError(unknown(f"fact about {layout.kind}:", name, layout.known_facts))


def _networks(
    layout: ForeignLayout,
    checkpoint: ForeignCheckpoint,
    facts: Facts,
    run: Path | str | None,
) -> dict[str, Network]:
    """The networks of a checkpoint by role, with the tokenizer of a prior where there is one."""
    stated: Facts = {**checkpoint.facts, **facts}
    if layout.network != "prior":
        role = "tokenizer" if layout.network == "tokenizer" else "model"
        return {role: convert(layout.kind, checkpoint.tensors, stated)}
    tokenizer: Network | None = None
    prior = checkpoint
    if run is not None:
        tokenizer = load_model(run)
        if not isinstance(tokenizer, Tokenizer):
            raise InputError(f"{run} is no tokenizer")
    has_first_stage = any(name.startswith(FIRST_STAGE) for name in checkpoint.tensors)
    if layout.kind == "taming-gpt" and has_first_stage:
        prior, first = _halves(checkpoint)
        if tokenizer is None:
            tokenizer = _first_stage(first, prior, stated)
    if tokenizer is not None and GRID_FACT not in facts:
        assert isinstance(tokenizer, Tokenizer)
        grid = tokenizer.grid()
        stated[GRID_FACT] = [grid.height, grid.width]
    networks = {"prior": convert(layout.kind, prior.tensors, stated)}
    return networks if tokenizer is None else {"tokenizer": tokenizer, **networks}


def _halves(checkpoint: ForeignCheckpoint) -> tuple[ForeignCheckpoint, ForeignCheckpoint]:
    """The transformer and the first stage of a ``Net2NetTransformer``.

    Raises:
        ConfigError: when it has a condition that is a network, too.
    """
    others = []
    for name in checkpoint.tensors:
        if not name.startswith((TRANSFORMER, FIRST_STAGE)):
            others.append(name)
    if others:
        raise ConfigError(
            f"{len(others)} tensors of {checkpoint.path} belong to neither transformer nor first "
            f"stage ({some(sorted(others))}): conditions other than classes cannot be converted"
        )
    return checkpoint.below(TRANSFORMER), checkpoint.below(FIRST_STAGE)


def _first_stage(first: ForeignCheckpoint, prior: ForeignCheckpoint, stated: Facts) -> Tokenizer:
    """The tokenizer of a ``Net2NetTransformer``, for images of the size that its prior is for."""
    tokenizer = convert("taming-vqgan", first.tensors, stated)
    assert isinstance(tokenizer, VQGAN)
    if "resolution" not in stated and "pos_emb" in prior.tensors:
        places = shape_of(prior.tensors, "pos_emb", 3)[1]
        side = square_side(places) * tokenizer.stride
        tokenizer.image_size = (side, side)
    return tokenizer


def _save(networks: Mapping[str, Network], layout: ForeignLayout, out: Path, source: Path) -> str:
    """Save networks at once, with a card that says where they are from.

    Returns:
        The kind of the saved model.
    """
    origin = f"Converted from {layout.about}: `{source.name}`, SHA-256 `{files.sha256(source)}`."
    with files.atomic_directory(out) as folder:
        if "tokenizer" in networks and "prior" in networks:
            kind = "generator"
            tokenizer = cast(Tokenizer, networks["tokenizer"])
            save_generator(tokenizer, cast(Prior, networks["prior"]), folder)
        elif "prior" in networks:
            kind = "prior"
            save_prior(cast(Prior, networks["prior"]), folder)
        elif "model" in networks:
            model = networks["model"]
            assert isinstance(model, DensityModel)
            kind = model.kind
            generator = pixel_generator(model)
            save_generator(generator.tokenizer, generator.prior, folder)
        else:
            kind = "tokenizer"
            save_model(cast(Tokenizer, networks["tokenizer"]), folder)
        write_card(folder, {}, {"Origin": origin})
    return kind


def _header(tensors: Tensors) -> TensorsHeader:
    """Tensors as the header of a file describes them."""
    described: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        dtype = TYPES.get(tensor.dtype, str(tensor.dtype))
        size = tensor.numel() * tensor.element_size()
        described[name] = StoredTensor(dtype, tuple(tensor.shape), 0, size)
    return TensorsHeader({}, described)


def _check_names(origins: Mapping[str, Origin], given: Tensors) -> None:
    """Refuse tensors that are missing or left over, and list them."""
    expected: set[str] = set()
    for origin in origins.values():
        expected.update(origin.names)
    differences = {"missing": expected - given.keys(), "unknown": given.keys() - expected}
    problems = []
    for what, names in differences.items():
        if names:
            problems.append(f"{len(names)} {what} ({some(sorted(names))})")
    if problems:
        raise ConfigError("; ".join(problems))


def _check_shapes(
    origins: Mapping[str, Origin], given: Tensors, wanted: Mapping[str, torch.Tensor]
) -> None:
    """Convert tensors without memory, and compare their shapes with those of our network."""
    for ours, origin in origins.items():
        # A layout and a network that do not know each other are a fault of ours.
        assert ours in wanted, ours
        for name in origin.names:
            if not given[name].is_floating_point():
                raise ConfigError(f"{name} is {given[name].dtype}, which no weight is")
        parts = [torch.empty(given[name].shape, device="meta") for name in origin.names]
        named = some(list(origin.names)) or ours
        expected = list(wanted[ours].shape)
        try:
            made = list(origin.convert(parts).shape)
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            shapes = " and ".join(str(list(part.shape)) for part in parts)
            raise ConfigError(
                f"{named} of shape {shapes} cannot become {ours} of shape {expected}"
            ) from error
        if made != expected:
            raise ConfigError(f"{named} makes a tensor {made}, but {ours} must be {expected}")
    missing = wanted.keys() - origins.keys()
    assert not missing, missing
