"""Layouts of checkpoints of other projects, by the name of their kind."""

from __future__ import annotations

from tessella.exchange.layouts.deep_layouts import (
    DiffusersVQModel,
    LlamaGenVQ,
    TamingVQGAN,
    VarVQVAE,
)
from tessella.exchange.layouts.foreign_layout import ForeignLayout
from tessella.exchange.layouts.gpt_layouts import LlamaGenGPT, TamingGPT
from tessella.exchange.layouts.pixel_cnn_pp_layout import PixelCNNppPort
from tessella.exchange.layouts.vqvae2_layout import RosinalityVQVAE2

__all__ = ["LAYOUTS", "ForeignLayout"]

LAYOUTS: dict[str, ForeignLayout] = {}
"""Every kind of checkpoint that can be imported; the command line shows them in this order."""

for _layout in (
    TamingVQGAN,
    TamingGPT,
    LlamaGenVQ,
    LlamaGenGPT,
    DiffusersVQModel,
    VarVQVAE,
    RosinalityVQVAE2,
    PixelCNNppPort,
):
    LAYOUTS[_layout.kind] = _layout()
