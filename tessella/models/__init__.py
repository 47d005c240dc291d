"""Density models by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

from tessella.errors import ConfigError, unknown
from tessella.grid import Grid
from tessella.heads import HEADS, create_head
from tessella.models.condition import Cond, Condition, Conditioning
from tessella.models.density_model import DensityModel
from tessella.models.diagonal_bilstm import DiagonalBiLSTM
from tessella.models.fvsbn import FVSBN
from tessella.models.gated_pixelcnn import GatedPixelCNN
from tessella.models.hierarchy import Hierarchy
from tessella.models.independent import Independent
from tessella.models.lstm import LSTM
from tessella.models.made import MADE
from tessella.models.nade import NADE
from tessella.models.pixelcnn import PixelCNN
from tessella.models.pixelcnn_pp import PixelCNNpp
from tessella.models.pixelsnail import PixelSNAIL
from tessella.models.row_lstm import RowLSTM
from tessella.models.transformer import Transformer
from tessella.registry import Registry

MODELS: Registry[type[DensityModel]] = Registry("density model", base=DensityModel)
"""Every density model that :func:`create` can build."""

for _model in (
    Independent,
    GatedPixelCNN,
    PixelCNN,
    RowLSTM,
    DiagonalBiLSTM,
    PixelCNNpp,
    PixelSNAIL,
    Transformer,
    FVSBN,
    NADE,
    LSTM,
    MADE,
):
    MODELS.register(_model.name)(_model)

register_model = MODELS.register
"""Decorator that adds a density model from outside: ``@ts.register_model("mine")``."""

Prior = DensityModel | Hierarchy
"""What models the symbols of a tokenizer: one density model, or one for each of its grids."""

__all__ = [
    "MODELS",
    "Cond",
    "Condition",
    "DensityModel",
    "Hierarchy",
    "Prior",
    "create",
    "create_prior",
    "from_config",
    "prior_from_config",
    "register_model",
]


def create(
    name: str,
    grid: Grid,
    head: str = "categorical",
    classes: int = 0,
    seed: int = 0,
    codes: Grid | None = None,
    **sizes: Any,
) -> DensityModel:
    """Build a density model with fresh weights, in eval mode.

    Args:
        name: a key of ``MODELS``.
        grid: the grid it models.
        head: a key of ``HEADS``.
        classes: classes to condition on; 0 for none.
        seed: of the weights; the global generator is left alone.
        codes: grid of codes to condition on, for the models that take one.
        sizes: what the model's class takes (``layers=``, ``hidden=``, ...), and what the head takes
            (``components=``).

    Raises:
        ConfigError: for an unknown name or size; the known ones are listed.

    >>> model = create("gated-pixelcnn", Grid(4, 4, 1, 2), layers=2, hidden=8)
    >>> model.log_prob(torch.zeros(3, 4, 4, 1, dtype=torch.int64)).shape
    torch.Size([3])
    """
    family = MODELS.get_or_explain(name)
    of_model = _sizes_of(family, without=("grid", "head", "conditioning"))
    of_head = _sizes_of(HEADS.get_or_explain(head), without=("grid",))
    for key in sizes:
        if key not in of_model and key not in of_head:
            raise ConfigError(
                unknown(f"size of {name} with head {head}:", key, [*of_model, *of_head])
            )
    _check_types(sizes, of_model)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        built = create_head(head, grid, **{k: v for k, v in sizes.items() if k in of_head})
        model = family(
            grid=grid,
            head=built,
            conditioning=Conditioning(classes, codes),
            **{k: v for k, v in sizes.items() if k in of_model},
        )
    return model.eval()


def create_prior(
    name: str,
    grids: Sequence[Grid],
    head: str = "categorical",
    classes: int = 0,
    seed: int = 0,
    finer: Mapping[str, Any] | None = None,
    **sizes: Any,
) -> Prior:
    """The prior of a tokenizer that makes these grids: a density model, or a :class:`Hierarchy` for
    several.

    Args:
        name, head, classes, seed, sizes: see :func:`create`.
        grids: what ``tokenizer.grids()`` gives.
        finer: sizes of the models after the first where they are others, and ``name`` where it is
            another family.

    Raises:
        ConfigError: see :func:`create` and :class:`Hierarchy`.
    """
    if len(grids) == 1:
        if finer:
            raise ConfigError("finer= is for the priors of several grids; this tokenizer makes one")
        return create(name, grids[0], head, classes, seed, **sizes)
    changed = {"name": name} | sizes | dict(finer or {})
    priors = [create(name, grids[0], head, classes, seed, **sizes)]
    for coarse, fine in pairwise(grids):
        own = {key: value for key, value in changed.items() if key != "name"}
        priors.append(create(changed["name"], fine, head, classes, seed, codes=coarse, **own))
    return Hierarchy(priors)


def prior_from_config(config: Mapping[str, Any]) -> Prior:
    """The density model or the hierarchy of a ``config()``, with fresh weights."""
    if config["name"] == Hierarchy.name:
        return Hierarchy([from_config(part) for part in config["priors"]]).eval()
    return from_config(config)


def from_config(config: Mapping[str, Any]) -> DensityModel:
    """The model of a :meth:`DensityModel.config`, with fresh weights."""
    head = dict(config["head"])
    name = head.pop("name")
    codes = Grid(**config["codes"]) if config.get("codes") else None
    model = create(
        config["name"],
        Grid(**config["grid"]),
        name,
        config["classes"],
        codes=codes,
        **head,
        **config["sizes"],
    )
    model.null_class = bool(config["null_class"])
    return model


def _sizes_of(cls: type, without: Sequence[str]) -> dict[str, inspect.Parameter]:
    """Parameters of a class's constructor by name, without those that are no sizes."""
    parameters = inspect.signature(cls).parameters
    return {name: value for name, value in parameters.items() if name not in without}


def _check_types(sizes: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> None:
    """Refuse a size whose type is not that of its default."""
    for key, value in sizes.items():
        default = parameters[key].default if key in parameters else 1
        wanted = (int, float) if isinstance(default, float) else type(default)
        if not isinstance(value, wanted) or (
            isinstance(value, bool) and not isinstance(default, bool)
        ):
            raise ConfigError(f"{key} must be of type {type(default).__name__}, got {value!r}")
