"""A tokenizer and a prior on its codes are one generator; saving and loading of models.

A pixel model is a two-stage model whose tokenizer is the identity, so there is one class for both.
A saved model is a directory: ``config.json``, ``model.safetensors`` and ``README.md`` (its card); a
two-stage model holds two such directories, ``tokenizer`` and ``prior``. Nothing but JSON and
safetensors is ever loaded. What all models that a run can hold have in common, and in what they
differ, is in :mod:`tessella.pipeline.saved_model`.
"""

from tessella.pipeline.generator import Generator, warn_of_order
from tessella.pipeline.loading import (
    bundled,
    is_bundled,
    load,
    load_model,
    load_saved,
    locate,
    pick_device,
    pixel_generator,
)
from tessella.pipeline.run_record import check_record, read_run_record
from tessella.pipeline.saved_model import (
    NOUNS,
    BoundsImages,
    CompletesImages,
    Component,
    DrawsImages,
    SavedModel,
    ScoresImages,
    class_count,
    learned_tokenizer,
    pixel_levels,
    require,
    require_codes,
)
from tessella.pipeline.saving import FORMAT, read_config, save_generator, save_model, write_card
from tessella.pipeline.weights import fingerprint, load_weights

__all__ = [
    "FORMAT",
    "NOUNS",
    "BoundsImages",
    "CompletesImages",
    "Component",
    "DrawsImages",
    "Generator",
    "SavedModel",
    "ScoresImages",
    "bundled",
    "check_record",
    "class_count",
    "fingerprint",
    "is_bundled",
    "learned_tokenizer",
    "load",
    "load_model",
    "load_saved",
    "load_weights",
    "locate",
    "pick_device",
    "pixel_generator",
    "pixel_levels",
    "read_config",
    "read_run_record",
    "require",
    "require_codes",
    "save_generator",
    "save_model",
    "warn_of_order",
    "write_card",
]
