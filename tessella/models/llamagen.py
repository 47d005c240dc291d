"""Load class-conditional LlamaGen transformers.

Sun et al. 2024, "Autoregressive Model Beats Diffusion".

A LlamaGen network equals our :class:`Transformer` with the prefix ``"nowhere"``, one channel, and
zeros for the parts that it lacks: the vectors of rows and columns, the direction in the embedding
of symbols, and the bias of the output. This module maps its tensors to ours by name.
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
"""From their names within a layer to ours within a block. ``w1`` and ``w3`` are missing here,
because they become one matrix."""
GATE = "feed_forward.w1.weight"
VALUE = "feed_forward.w3.weight"

NAMES_SHOWN = 3
"""How many tensor names an error message lists before "..."."""


def from_llamagen(
    state: Mapping[str, torch.Tensor], height: int, width: int, heads: int, null_row: bool = True
) -> DensityModel:
    """Build a model from the weights of a class-conditional LlamaGen transformer.

    Args:
        state: tensors of the checkpoint, under LlamaGen's names (``tok_embeddings.weight``, ...).
        height, width: size of the grid of codes; LlamaGen's are square, 16 x 16 codes for images of
            256 x 256 pixels.
        heads: number of query heads, which cannot be read from the shapes: 12 for GPT-B, 16 for L,
            20 for XL, 24 for XXL, 40 for XXXL.
        null_row: whether the last row of the class table is the null class, as in all published
            checkpoints. Without it, the model needs a class for every image.

    Returns:
        A ``transformer`` in eval mode, float32.

    Raises:
        ConfigError: for tensors that are missing, unknown or of the wrong shape, which the message
            names, or for a number of heads that does not fit.
    """
    # This checks all names, so the code below can rely on them.
    sizes = _sizes(state, heads)
    rows = state[CLASSES].shape[0]
    levels = state[TOKENS].shape[0]
    classes = rows - 1 if null_row else rows
    model = create("transformer", Grid(height, width, 1, levels), classes=classes, **sizes)
    ours = model.state_dict()
    renamed = _renamed(state, sizes["layers"], null_row)
    # LlamaGen has no learned vectors of positions, so ours are set to zero.
    for name in ("rows", "columns"):
        renamed[name] = torch.zeros_like(ours[name])
    for name in sorted(ours.keys() | renamed.keys()):
        expected = list(ours[name].shape) if name in ours else "nothing"
        got = list(renamed[name].shape) if name in renamed else "nothing"
        if expected != got:
            raise ConfigError(
                "these tensors make no LlamaGen transformer: "
                f"{name} would be {got}, expected {expected}"
            )
    model.load_state_dict(renamed)
    model.null_class = null_row
    return model


def _sizes(state: Mapping[str, torch.Tensor], heads: int) -> ModelSizes:
    """Read the sizes of the transformer from the shapes of its tensors.

    Raises:
        ConfigError: for names or a number of heads that do not fit.
    """
    # Layers are numbered from 0, so their count is the largest number plus 1.
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
    # One matrix makes queries, keys and values; keys and values may have fewer heads. So
    # inner = width + 2 * kv_heads * (width / heads).
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
    """The first few names of a list, for an error message."""
    shown = ", ".join(names[:NAMES_SHOWN])
    return shown + ", ..." if len(names) > NAMES_SHOWN else shown


def _renamed(
    state: Mapping[str, torch.Tensor], layers: int, null_row: bool
) -> dict[str, torch.Tensor]:
    """The tensors under our names and in our shapes, as float32."""
    tokens = state[TOKENS]
    classes = state[CLASSES]
    if not null_row:
        # Our table always has a row for the null class, which this model never uses.
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
        # Our layer computes gate and value with one product.
        gate = state[f"layers.{i}.{GATE}"]
        value = state[f"layers.{i}.{VALUE}"]
        ours[f"blocks.{i}.feedforward.widen.weight"] = torch.cat([gate, value])
    return {name: tensor.float() for name, tensor in ours.items()}
