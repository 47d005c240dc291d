"""Class-conditional LlamaGen transformers (Sun et al. 2024, "Autoregressive Model Beats Diffusion")
as ours.

Their network is our :class:`Transformer` with the prefix ``"nowhere"``, one channel, and zeros for
what they do not have: the vectors of rows and columns, the direction in the embedding of symbols,
the bias of the output. This module maps their tensors, by their names, to ours.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from tessella.errors import ConfigError
from tessella.grid import Grid
from tessella.models import ModelSizes, create
from tessella.models.density_model import DensityModel

CLASSES = "cls_embedding.embedding_table.weight"
TOKENS = "tok_embeddings.weight"
OUTPUT = "output.weight"
NORM = "norm.weight"
BLOCK_NAMES = {
    "attention_norm.weight": "before_attention.weight",
    "attention.wqkv.weight": "attention.project.weight",
    "attention.wo.weight": "attention.merge.weight",
    "ffn_norm.weight": "before_feedforward.weight",
    "feed_forward.w2.weight": "feedforward.narrow.weight",
}
"""Their names within a layer to ours within a block; ``w1`` and ``w3`` make one matrix here."""
GATE = "feed_forward.w1.weight"
VALUE = "feed_forward.w3.weight"

NAMES_SHOWN = 3
"""How many tensor names a message lists before it says "..."."""


def from_llamagen(
    state: Mapping[str, torch.Tensor], height: int, width: int, heads: int, null_row: bool = True
) -> DensityModel:
    """The model whose weights are those of a class-conditional LlamaGen transformer.

    Args:
        state: tensors of the checkpoint by the names LlamaGen gives them
            (``tok_embeddings.weight``, ...).
        height, width: of the grid of codes; LlamaGen's are square, 16 x 16 for images of 256 x 256.
        heads: query heads, which no shape reveals: 12 of GPT-B, 16 of L, 20 of XL, 24 of XXL, 40 of
            XXXL.
        null_row: whether the last row of the table of classes is the null class, as in all
            published checkpoints; without it the model needs a class for every image.

    Raises:
        ConfigError: naming tensors that are missing, left over or of another shape; for heads that
            do not fit.

    Returns:
        A ``transformer`` in eval mode, float32.
    """
    # Names and sizes first: what follows may rely on them.
    sizes = _sizes(state, heads)
    rows, levels = state[CLASSES].shape[0], state[TOKENS].shape[0]
    classes = rows - 1 if null_row else rows
    model = create("transformer", Grid(height, width, 1, levels), classes=classes, **sizes)
    ours = model.state_dict()
    renamed = _renamed(state, sizes["layers"], null_row)
    # They have no learned vectors of positions; ours are zero.
    for name in ("rows", "columns"):
        renamed[name] = torch.zeros_like(ours[name])
    for name in sorted(ours.keys() | renamed.keys()):
        expected = list(ours[name].shape) if name in ours else "nothing"
        got = list(renamed[name].shape) if name in renamed else "nothing"
        if expected != got:
            raise ConfigError(
                "these tensors make no LlamaGen transformer: "
                f"{name} would be {got}, wanted is {expected}"
            )
    model.load_state_dict(renamed)
    model.null_class = null_row
    return model


def _sizes(state: Mapping[str, torch.Tensor], heads: int) -> ModelSizes:
    """The sizes of the transformer, read from shapes.

    Raises:
        ConfigError: for names or heads that do not fit.
    """
    layers = 0
    for name in state:
        if name.startswith("layers."):
            layers = max(layers, int(name.split(".")[1]) + 1)
    wanted = {CLASSES, TOKENS, OUTPUT, NORM}
    for i in range(max(layers, 1)):
        for name in [*BLOCK_NAMES, GATE, VALUE]:
            wanted.add(f"layers.{i}.{name}")
    missing = sorted(wanted - state.keys())
    extra = sorted(state.keys() - wanted)
    problems = []
    if missing:
        problems.append(f"{len(missing)} missing ({_some(missing)})")
    if extra:
        problems.append(f"{len(extra)} unknown ({_some(extra)})")
    if problems:
        raise ConfigError(
            "these tensors are not those of a class-conditional LlamaGen transformer: "
            + "; ".join(problems)
        )
    # Queries, then keys and values of possibly fewer heads: inner = width + 2 * kv_heads * size.
    inner, width = state["layers.0.attention.wqkv.weight"].shape
    if heads < 1 or width % heads or (inner - width) % (2 * width // heads):
        raise ConfigError(
            f"heads={heads} does not fit queries, keys and values of shape [{inner}, {width}]"
        )
    return {
        "layers": layers,
        "width": width,
        "heads": heads,
        "kv_heads": (inner - width) // (2 * width // heads),
        "feedforward": state[f"layers.0.{GATE}"].shape[0],
        "prefix": "nowhere",
    }


def _some(names: list[str]) -> str:
    """The first names of a list, for a message."""
    shown = ", ".join(names[:NAMES_SHOWN])
    return shown + ", ..." if len(names) > NAMES_SHOWN else shown


def _renamed(
    state: Mapping[str, torch.Tensor], layers: int, null_row: bool
) -> dict[str, torch.Tensor]:
    """Their tensors by our names and in our shapes, float32."""
    tokens = state[TOKENS]
    classes = state[CLASSES]
    if not null_row:
        # Our table always has a row for the null class. This model never uses it.
        classes = torch.cat([classes, torch.zeros_like(classes[:1])])
    ours = {
        "embedding.vectors": tokens[None],
        "embedding.direction": torch.zeros_like(tokens[None, :1]),
        "class_embedding.weight": classes,
        "norm.weight": state[NORM],
        "output.last.weight": state[OUTPUT],
        "output.last.bias": torch.zeros_like(state[OUTPUT][:, 0]),
    }
    for i in range(layers):
        for theirs, our_name in BLOCK_NAMES.items():
            ours[f"blocks.{i}.{our_name}"] = state[f"layers.{i}.{theirs}"]
        # Our layer makes gate and value by one product.
        gate = state[f"layers.{i}.{GATE}"]
        value = state[f"layers.{i}.{VALUE}"]
        ours[f"blocks.{i}.feedforward.widen.weight"] = torch.cat([gate, value])
    return {name: tensor.float() for name, tensor in ours.items()}
