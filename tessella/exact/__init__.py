"""Exact twins: models that compute with integers only, the same on every machine.

``docs/arithmetic.md`` defines each of their operations.
"""

from tessella.exact.exact_model import ARITHMETIC_VERSION, ExactModel, convert
from tessella.exact.twin_files import has_twin, load_twin, save_twin

__all__ = [
    "ARITHMETIC_VERSION",
    "ExactModel",
    "convert",
    "has_twin",
    "load_twin",
    "save_twin",
]
