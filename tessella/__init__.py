"""Images as discrete symbols: density models, tokenizers and priors.

Likelihoods are exact, and sampling is exact and fast.

>>> import tessella as ts
>>> grid = ts.Grid(height=8, width=8, channels=1, levels=17)
>>> model = ts.create("gated-pixelcnn", grid, layers=2, hidden=16)
>>> ts.sample(model, n=2, seed=0).shape
torch.Size([2, 8, 8, 1])
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

# For type checkers and editors, which do not run __getattr__ below.
if TYPE_CHECKING:
    from tessella import bulk
    from tessella.codec import Archive, compress, decompress
    from tessella.data import SOURCES, Source, register_source
    from tessella.errors import BitstreamError
    from tessella.evaluation import assess, compare, evaluate
    from tessella.grid import Grid
    from tessella.heads import HEADS, Head, register_head
    from tessella.models import (
        MODELS,
        DensityModel,
        Hierarchy,
        create,
        create_prior,
        register_model,
    )
    from tessella.models.condition import UNCONDITIONAL
    from tessella.models.weight_storage import quantize_weights
    from tessella.nn.stepping.state import State
    from tessella.pipeline import Generator, load
    from tessella.registry import load_plugin
    from tessella.sampling import complete, log_prob_missing, replay, sample, stream
    from tessella.storage.code_store import CodeSet, open_codes, tokenize
    from tessella.tokenizers import TOKENIZERS, Tokenizer, create_tokenizer, register_tokenizer
    from tessella.tokenizers.images import Images
    from tessella.tokenizers.quantizers import (
        QUANTIZERS,
        Quantizer,
        create_quantizer,
        register_quantizer,
    )
    from tessella.training import train
    from tessella.vae import VAE, create_vae

__version__ = "0.1.0"

# Names load on first use: the command line shows its help without importing torch.
_HOMES = {
    "Archive": "codec",
    "compress": "codec",
    "decompress": "codec",
    "BitstreamError": "errors",
    "SOURCES": "data",
    "Source": "data",
    "register_source": "data",
    "Grid": "grid",
    "HEADS": "heads",
    "Head": "heads",
    "register_head": "heads",
    "State": "nn.stepping.state",
    "UNCONDITIONAL": "models.condition",
    "MODELS": "models",
    "DensityModel": "models",
    "Hierarchy": "models",
    "create_prior": "models",
    "create": "models",
    "register_model": "models",
    "quantize_weights": "models.weight_storage",
    "complete": "sampling",
    "log_prob_missing": "sampling",
    "replay": "sampling",
    "sample": "sampling",
    "stream": "sampling",
    "TOKENIZERS": "tokenizers",
    "Images": "tokenizers.images",
    "Tokenizer": "tokenizers",
    "create_tokenizer": "tokenizers",
    "register_tokenizer": "tokenizers",
    "QUANTIZERS": "tokenizers.quantizers",
    "Quantizer": "tokenizers.quantizers",
    "create_quantizer": "tokenizers.quantizers",
    "register_quantizer": "tokenizers.quantizers",
    "VAE": "vae",
    "create_vae": "vae",
    "CodeSet": "storage.code_store",
    "open_codes": "storage.code_store",
    "tokenize": "storage.code_store",
    "Generator": "pipeline",
    "load": "pipeline",
    "load_plugin": "registry",
    "train": "training",
    "assess": "evaluation",
    "compare": "evaluation",
    "evaluate": "evaluation",
}

__all__ = [
    "HEADS",
    "MODELS",
    "QUANTIZERS",
    "TOKENIZERS",
    "VAE",
    "CodeSet",
    "DensityModel",
    "Generator",
    "Grid",
]
__all__ += [
    "Hierarchy",
    "Images",
    "Tokenizer",
    "assess",
    "compare",
    "complete",
    "create",
    "create_prior",
    "create_quantizer",
]
__all__ += [
    "create_tokenizer",
    "create_vae",
    "evaluate",
    "load",
    "load_plugin",
    "log_prob_missing",
    "open_codes",
    "register_head",
    "register_model",
    "register_quantizer",
    "register_tokenizer",
    "replay",
    "sample",
    "stream",
]
__all__ += ["SOURCES", "Source", "register_source", "tokenize", "train"]
__all__ += ["bulk"]
__all__ += ["Archive", "BitstreamError", "compress", "decompress"]
__all__ += ["UNCONDITIONAL", "Head", "Quantizer", "State", "quantize_weights"]


_PACKAGES = ("bulk",)
"""Packages that are used by their name, ``ts.bulk.Tokenize``."""


def __getattr__(name: str) -> object:
    if name in _PACKAGES:
        # The import itself sets the attribute of this module.
        return import_module(f"tessella.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'tessella' has no attribute {name!r}")
    # Kept in the module, so that this function is asked once for each name.
    value = getattr(import_module(f"tessella.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    # Names that have not been used yet are completed by a shell as well.
    return sorted({*globals(), *_HOMES, *_PACKAGES})
