"""Class-conditional LlamaGen transformers (Sun et al. 2024, "Autoregressive Model Beats Diffusion")
as ours.

Their network is our :class:`Transformer` with the prefix ``"nowhere"``, one channel, and zeros for
what they do not
have: the vectors of rows and columns, the direction in the embedding of symbols, the bias of the
output. This module maps their tensors, by their names, to ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tessella.errors import ConfigError
from tessella.grid import Grid
from tessella.models import create
from tessella.models.density_model import DensityModel

CLASSES = "cls_embedding.embedding_table.weight"
TOKENS = "tok_embeddings.weight"
OUTPUT = "output.weight"
OF_BLOCK = {
    "attention_norm.weight": "before_attention.weight",
    "attention.wqkv.weight": "attention.project.weight",
    "attention.wo.weight": "attention.merge.weight",
    "ffn_norm.weight": "before_feedforward.weight",
    "feed_forward.w2.weight": "feedforward.narrow.weight",
}
"""Their names within a layer to ours within a block; ``w1`` and ``w3`` make one matrix here."""
GATE, VALUE = "feed_forward.w1.weight", "feed_forward.w3.weight"


def from_llamagen(
    state: Mapping[str, torch.Tensor], height: int, width: int, heads: int, null_row: bool = True
) -> DensityModel:
    """The model whose weights are those of a class-conditional LlamaGen transformer.

    Args:
        state: tensors of the checkpoint by the names LlamaGen gives them
            (``tok_embeddings.weight``, ...).
        height, width: of the grid of codes; LlamaGen's are square, 16 x 16 for images of 256 x 256.
        heads: query heads, which no shape tells: 12 of GPT-B, 16 of L, 20 of XL, 24 of XXL, 40 of
            XXXL.
        null_row: whether the last row of the table of classes is the null class, as in all
            published checkpoints; without it the model needs a class for every image.

    Raises:
        ConfigError: naming tensors that are missing, left over or of another shape; for heads that
            do not fit.

    Returns:
        A ``transformer`` in eval mode, float32.
    """
    sizes = _sizes(state, heads)
    rows, levels = state[CLASSES].shape[0], state[TOKENS].shape[0]
    model = create("transformer", Grid(height, width, 1, levels), classes=rows - null_row, **sizes)
    own = model.state_dict()
    renamed = {name: torch.zeros_like(own[name]) for name in ("rows", "columns")}
    renamed |= _renamed(state, sizes["layers"], null_row)
    for name in sorted(own.keys() | renamed.keys()):
        if name not in own or name not in renamed or own[name].shape != renamed[name].shape:
            expected, got = (
                list(part[name].shape) if name in part else "nothing" for part in (own, renamed)
            )
            raise ConfigError(
                f"these tensors make no LlamaGen transformer: {name} would be {got}, wanted is {expected}"
            )
    model.load_state_dict(renamed)
    model.null_class = null_row
    return model


def _sizes(state: Mapping[str, torch.Tensor], heads: int) -> dict[str, Any]:
    """The sizes of the transformer, read from shapes.

    Raises:
        ConfigError: for names or heads that do not fit.
    """
    layers = 1 + max(
        (int(name.split(".")[1]) for name in state if name.startswith("layers.")), default=-1
    )
    of_layer = [*OF_BLOCK, GATE, VALUE]
    wanted = {CLASSES, TOKENS, OUTPUT, "norm.weight"}
    wanted |= {f"layers.{i}.{name}" for i in range(max(layers, 1)) for name in of_layer}
    missing, extra = sorted(wanted - state.keys()), sorted(state.keys() - wanted)
    if missing or extra:
        told = [
            f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for what, names in (("missing", missing), ("unknown", extra))
            if names
        ]
        raise ConfigError(
            f"these tensors are not those of a class-conditional LlamaGen transformer: {'; '.join(told)}"
        )
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


def _renamed(
    state: Mapping[str, torch.Tensor], layers: int, null_row: bool
) -> dict[str, torch.Tensor]:
    """Their tensors by our names and in our shapes, float32."""
    tokens, classes = state[TOKENS], state[CLASSES]
    if not null_row:
        classes = torch.cat([classes, torch.zeros_like(classes[:1])])
    ours = {
        "embedding.vectors": tokens[None],
        "embedding.direction": torch.zeros_like(tokens[None, :1]),
        "class_embedding.weight": classes,
        "norm.weight": state["norm.weight"],
        "output.last.weight": state[OUTPUT],
        "output.last.bias": torch.zeros_like(state[OUTPUT][:, 0]),
    }
    for i in range(layers):
        ours |= {
            f"blocks.{i}.{own}": state[f"layers.{i}.{theirs}"] for theirs, own in OF_BLOCK.items()
        }
        gate, value = (state[f"layers.{i}.{name}"] for name in (GATE, VALUE))
        ours[f"blocks.{i}.feedforward.widen.weight"] = torch.cat([gate, value])
    return {name: tensor.float() for name, tensor in ours.items()}
