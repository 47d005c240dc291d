"""The table of density models, and the functions that build them by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Unpack, cast

import torch

from tessella.errors import ConfigError, InputError, check_integer, unknown
from tessella.grid import Grid
from tessella.heads import HEADS, create_head
from tessella.models.any_order_transformer import AnyOrderTransformer
from tessella.models.condition import Cond, Condition, Conditioning
from tessella.models.density_model import DensityModel
from tessella.models.diagonal_bilstm import DiagonalBiLSTM
from tessella.models.fvsbn import FVSBN
from tessella.models.gated_pixelcnn import GatedPixelCNN
from tessella.models.gpt import GPT
from tessella.models.hierarchy import GRIDS, Hierarchy
from tessella.models.independent import Independent
from tessella.models.lstm import LSTM
from tessella.models.made import MADE
from tessella.models.masked_transformer import MaskedTransformer
from tessella.models.nade import NADE
from tessella.models.next_scale import NextScale
from tessella.models.pixelcnn import PixelCNN
from tessella.models.pixelcnn_pp import PixelCNNpp
from tessella.models.pixelsnail import PixelSNAIL
from tessella.models.row_lstm import RowLSTM
from tessella.models.sizes import ModelSizes
from tessella.models.transformer import Transformer
from tessella.names import check_sizes
from tessella.nn.outline import build_within_memory
from tessella.registry import Registry

MODELS: Registry[type[DensityModel]] = Registry("density model", base=DensityModel)
"""Every density model that :func:`create` can build."""

# This is the order in which tables and help texts show them.
for _model in (
    Independent,
    GatedPixelCNN,
    PixelCNN,
    RowLSTM,
    DiagonalBiLSTM,
    PixelCNNpp,
    PixelSNAIL,
    Transformer,
    AnyOrderTransformer,
    MaskedTransformer,
    GPT,
    FVSBN,
    NADE,
    LSTM,
    MADE,
):
    MODELS.register(_model.name)(_model)

SMALL_PRODUCT = 1 << 14
"""Product of all sizes of a model up to which any machine can hold its layers."""

SMALL_TABLE = 1 << 28
"""That product times the symbols and the levels of the grid, up to which the same holds."""

register_model = MODELS.register
"""Decorator that adds a custom density model: ``@ts.register_model("mine")``."""

Prior = DensityModel | Hierarchy
"""A model of a tokenizer's codes: one density model, or a hierarchy with one for each grid."""

__all__ = [
    "MODELS",
    "Cond",
    "Condition",
    "DensityModel",
    "Hierarchy",
    "ModelSizes",
    "NextScale",
    "Prior",
    "create",
    "create_prior",
    "family",
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
    **sizes: Unpack[ModelSizes],
) -> DensityModel:
    """Build a density model with fresh weights, in eval mode.

    The sizes of each family, with their defaults::

        independent      (none)
        gated-pixelcnn   layers=5, hidden=64, kernel=3, dropout=0.0
        pixelcnn         layers=5, hidden=32, last=64, dropout=0.0
        row-lstm         layers=3, hidden=32, last=64, dropout=0.0
        diagonal-bilstm  layers=3, hidden=32, last=64, dropout=0.0
        pixelcnn++       blocks=1, filters=32, scales=2, embedding=16, dropout=0.0
        pixelsnail       blocks=2, residual_blocks=2, channels=32, residual_channels=32, kernel=3,
                         heads=4, dropout=0.0
        transformer      layers=4, width=64, heads=4, kv_heads=0, feedforward=0, dropout=0.0,
                         prefix='origin'
        any-order        layers=4, width=64, heads=4, feedforward=0, dropout=0.0, raster_share=0.25,
                         known_first_share=0.5
        masked           layers=4, width=64, heads=4, feedforward=0, dropout=0.0,
                         schedule='uniform'
        gpt              layers=4, width=64, heads=4, feedforward=0, dropout=0.0
        fvsbn            embedding=1
        nade             hidden=128, embedding=4
        lstm             layers=1, hidden=128, dropout=0.0
        made             layers=2, hidden=256, masks=1, direct=False, embedding=4, dropout=0.3,
                         mask_seed=0

    and of the heads::

        categorical, ordinal  (none)
        logistic-mixture      components=10, predictor=False, predictor_hidden=128

    Args:
        name: a key of ``ts.MODELS``.
        grid: the grid to model.
        head: a key of ``ts.HEADS``.
        classes: number of classes to condition on; 0 for none.
        seed: seed of the initial weights; the global generator is left unchanged.
        codes: grid of codes to condition on, for the models that take one.
        sizes: sizes of the model and of the head, see above.

    Raises:
        ConfigError: for an unknown name or size; the message lists the known ones.
        InputError: for an argument of the wrong type.

    >>> model = create("gated-pixelcnn", Grid(4, 4, 1, 2), layers=2, hidden=8)
    >>> model.log_prob(torch.zeros(3, 4, 4, 1, dtype=torch.int64)).shape
    torch.Size([3])
    """
    # A tuple would fail only later, with an error that does not name the argument.
    if not isinstance(grid, Grid):
        raise InputError(f"grid must be a Grid, for example ts.Grid(8, 8, 1, 17), got {grid!r}")
    seed = check_integer("seed", seed, least=-(2**63), most=2**64 - 1)
    wanted = _family_of_one_grid(name)
    model_sizes, head_sizes = _divide_sizes(name, head, sizes)
    check_sizes("", sizes)

    def construct() -> DensityModel:
        torch.default_generator.manual_seed(seed)
        # Build the head first, so that a bad head is rejected before any weight is drawn.
        built_head = create_head(head, grid, **head_sizes)
        conditioning = Conditioning(classes, codes)
        return wanted(grid=grid, head=built_head, conditioning=conditioning, **model_sizes)

    # torch's layers draw their weights from the global generator, so its state is restored.
    with torch.random.fork_rng(devices=[]):
        if _surely_fits(grid, {"classes": classes, **sizes}):
            return construct().eval()
        return build_within_memory(construct).eval()


def _family_of_one_grid(name: str) -> type[DensityModel]:
    """The class of a model of one grid.

    Raises:
        ConfigError: for a name that is unknown, or is of a model of several grids.
    """
    if name == NextScale.name:
        raise ConfigError(
            "next-scale models the codes of several scales, not one grid: use"
            " ts.create_prior('next-scale', tokenizer.grids()), or take another model"
        )
    return MODELS.get_or_explain(name)


def create_prior(
    name: str,
    grids: Sequence[Grid],
    head: str = "categorical",
    classes: int = 0,
    seed: int = 0,
    finer: Mapping[str, object] | None = None,
    **sizes: Unpack[ModelSizes],
) -> Prior:
    """Build the prior of a tokenizer, with fresh weights.

    Args:
        name, head, classes, seed, sizes: see :func:`create`.
        grids: grids of the tokenizer's codes, coarse to fine, as ``tokenizer.grids()`` returns
            them.
        finer: sizes of the models after the first, where they differ from ``sizes``; may also hold
            ``name``, for models of another family.

    Returns:
        A density model for one grid, a :class:`Hierarchy` for several; under the name
        ``next-scale`` a :class:`NextScale`, whose sizes are ``layers=4, width=64, heads=4,
        feedforward=0, embedding=32, dropout=0.0``.

    Raises:
        ConfigError: for more than two grids with any other model than ``next-scale``, and see
            :func:`create`, :class:`Hierarchy` and :class:`NextScale`.
        InputError: when ``grids`` is not a sequence of grids.
    """
    is_grids = isinstance(grids, Sequence) and all(isinstance(grid, Grid) for grid in grids)
    if not is_grids or not grids:
        raise InputError(
            f"grids must be a tuple of grids, as tokenizer.grids() gives, got {grids!r}"
        )
    if name == NextScale.name:
        if finer:
            raise ConfigError("finer= is for models of each grid; next-scale is one for all grids")
        return _create_next_scale(grids, head, classes, seed, **sizes)
    # Most tokenizers make one grid, which needs no hierarchy.
    if len(grids) == 1:
        if finer:
            raise ConfigError("finer= is for the priors of several grids; this tokenizer makes one")
        return create(name, grids[0], head, classes, seed, **sizes)
    if len(grids) > GRIDS:
        raise ConfigError(
            f"this tokenizer makes {len(grids)} grids of codes, and {name} models at most {GRIDS}:"
            " take next-scale (in a recipe model.name = 'next-scale'), or model all codes of an"
            ' image as one sequence, as docs/tokenizers.md shows under "Codes of many scales"'
        )
    # The finer models take the sizes of the first, except for those given in `finer`.
    changed = dict(finer or {})
    finer_name = str(changed.pop("name", name))
    finer_sizes = cast("ModelSizes", {**sizes, **changed})
    priors = [create(name, grids[0], head, classes, seed, **sizes)]
    for coarse, fine in pairwise(grids):
        priors.append(create(finer_name, fine, head, classes, seed, codes=coarse, **finer_sizes))
    return Hierarchy(priors)


def _create_next_scale(
    grids: Sequence[Grid], head: str, classes: int, seed: int, **sizes: Unpack[ModelSizes]
) -> NextScale:
    """A ``next-scale`` with fresh weights, in eval mode; arguments as of :func:`create_prior`."""
    seed = check_integer("seed", seed, least=-(2**63), most=2**64 - 1)
    model_sizes, head_sizes = _divide_sizes(NextScale.name, head, sizes)
    if head_sizes:
        raise ConfigError(
            f"next-scale takes a head without sizes, not {head!r}: take 'categorical'"
        )
    check_sizes("", sizes)

    def construct() -> NextScale:
        torch.default_generator.manual_seed(seed)
        return NextScale(grids, head=head, classes=classes, **model_sizes)

    # torch's layers draw their weights from the global generator, so its state is restored.
    with torch.random.fork_rng(devices=[]):
        return build_within_memory(construct).eval()


def prior_from_config(config: Mapping[str, Any]) -> Prior:
    """Build the density model or hierarchy of a saved ``config()``, with fresh weights."""
    # A hierarchy is not in MODELS, because it is made of models.
    if config["name"] == Hierarchy.name:
        return Hierarchy([from_config(part) for part in config["priors"]]).eval()
    if config["name"] == NextScale.name:
        return _next_scale_from_config(config)
    return from_config(config)


def _next_scale_from_config(config: Mapping[str, Any]) -> NextScale:
    """Build the model of a saved :meth:`NextScale.config`, with fresh weights."""
    grids = [Grid(**grid) for grid in config["grids"]]
    head = config["head"]["name"]
    model = _create_next_scale(grids, head, config["classes"], 0, **config["sizes"])
    # Training sets this, so it is not an argument of the constructor.
    model.null_class = bool(config["null_class"])
    return model


def from_config(config: Mapping[str, Any]) -> DensityModel:
    """Build the model of a saved :meth:`DensityModel.config`, with fresh weights.

    Raises:
        ConfigError: for names or sizes that this version does not know.
    """
    # The configuration of a head holds its name and its sizes side by side.
    head_sizes = dict(config["head"])
    head_name = head_sizes.pop("name")
    codes = Grid(**config["codes"]) if config.get("codes") else None
    model = create(
        config["name"],
        Grid(**config["grid"]),
        head_name,
        config["classes"],
        codes=codes,
        **head_sizes,
        **config["sizes"],
    )
    # Training sets this, so it is not an argument of the constructor.
    model.null_class = bool(config["null_class"])
    return model


def family(name: str) -> type[DensityModel] | type[NextScale]:
    """The class of a model that a recipe can name.

    Args:
        name: a key of ``ts.MODELS``, or ``next-scale``.

    Raises:
        ConfigError: for an unknown name; the message lists the known ones.
    """
    if name == NextScale.name:
        return NextScale
    return MODELS.get_or_explain(name)


def size_names(name: str, head: str) -> tuple[str, ...]:
    """Names of the sizes that a model with a head takes.

    Args:
        name: a key of ``ts.MODELS``, or ``next-scale``.
        head: a key of ``ts.HEADS``.

    Raises:
        ConfigError: for an unknown name, or a class that cannot be built with a grid.

    >>> size_names("lstm", "logistic-mixture")
    ('layers', 'hidden', 'dropout', 'components', 'predictor', 'predictor_hidden')
    """
    of_model, of_head = _size_parameters_of(name, head)
    return tuple({**of_model, **of_head})


def _surely_fits(grid: Grid, sizes: Mapping[str, object]) -> bool:
    """Whether a model is so small that nobody has to look at its shapes first.

    Looking costs a second of imports, the first time.
    """
    product = 1
    for name, value in sizes.items():
        if isinstance(value, int) and "seed" not in name:
            product *= max(1, value)
    # A layer has no more weights than the square of this, whatever the sizes mean.
    return product <= SMALL_PRODUCT and product * grid.symbols * grid.levels <= SMALL_TABLE


def _divide_sizes(
    name: str, head: str, sizes: Mapping[str, object]
) -> tuple[dict[str, Any], dict[str, object]]:
    """Split sizes into those of the model and those of its head.

    Raises:
        ConfigError: for a size that neither of them takes, or one of the wrong type.
    """
    model_parameters, head_parameters = _size_parameters_of(name, head)
    # Any, because every family has sizes of other types, which are checked here.
    model_sizes: dict[str, Any] = {}
    head_sizes: dict[str, object] = {}
    for key, value in sizes.items():
        # Model and head may have a size of the same name.
        if key in model_parameters:
            _check_type(key, value, model_parameters[key])
            model_sizes[key] = value
        if key in head_parameters:
            head_sizes[key] = value
        if key not in model_parameters and key not in head_parameters:
            known = [*model_parameters, *head_parameters]
            raise ConfigError(unknown(f"size of {name} with head {head}:", key, known))
    return model_sizes, head_sizes


def _size_parameters_of(
    name: str, head: str
) -> tuple[dict[str, inspect.Parameter], dict[str, inspect.Parameter]]:
    """The sizes of a model and those of a head."""
    if name == NextScale.name:
        of_model = _size_parameters(NextScale, without=("grids", "head", "classes"))
    else:
        wanted = MODELS.get_or_explain(name)
        of_model = _size_parameters(wanted, without=("grid", "head", "conditioning"))
    of_head = _size_parameters(HEADS.get_or_explain(head), without=("grid",))
    return of_model, of_head


def _size_parameters(cls: type, without: Sequence[str]) -> dict[str, inspect.Parameter]:
    """Parameters of a class's constructor that are sizes, by name.

    Args:
        cls: class of a model or a head.
        without: parameters that are not sizes.

    Raises:
        ConfigError: when the constructor lacks a parameter named in ``without``.
    """
    parameters = dict(inspect.signature(cls).parameters)
    for name in without:
        if parameters.pop(name, None) is None:
            raise ConfigError(
                f"the constructor of {cls.__name__} must take {', '.join(without)} "
                f"and then its sizes; {name} is missing"
            )
    return parameters


def _check_type(key: str, value: object, parameter: inspect.Parameter) -> None:
    """Raise ConfigError for a size whose type differs from that of its default."""
    default = parameter.default
    # Custom models may have sizes without a default; those can be of any type.
    if default is parameter.empty:
        return
    # An int can stand for a float, but not the other way round.
    allowed = (int, float) if isinstance(default, float) else type(default)
    # A bool is an int to Python, but layers=True is a mistake.
    is_stray_bool = isinstance(value, bool) and not isinstance(default, bool)
    if not isinstance(value, allowed) or is_stray_bool:
        raise ConfigError(f"{key} must be of type {type(default).__name__}, got {value!r}")
