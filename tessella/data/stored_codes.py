"""``codes:PATH``: a tokenizer's codes on disk, which stand in the place of images for a prior.

The reader is :mod:`tessella.storage.code_store`, which needs torch. Here the source has its name,
so that it is listed, explained and refused like any other.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from tessella.config import DataConfig
from tessella.data.source_kinds import Source, register_source
from tessella.errors import DataError


@register_source("codes")
class CodesSource(Source):
    """Codes that ``tessella tokenize`` wrote."""

    about = "codes that tessella tokenize wrote, to train a prior"
    holds_codes = True

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """Whether a folder holds shards of codes for one of the splits."""
        return path.is_dir() and any(path.glob("*/codes-00000.safetensors"))

    def read(self, path: str, split: str, config: DataConfig) -> NoReturn:
        """Refuse: codes are no images.

        Raises:
            DataError: always.
        """
        raise DataError(f"codes:{path} holds codes and no images")
