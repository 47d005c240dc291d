"""``codes:PATH``: a tokenizer's codes on disk, on which a prior can be trained.

They are read by :mod:`tessella.storage.code_store`, which needs torch. The source is registered
here so that it is listed and explained like any other, and refused where images are needed.
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
        """Refuse, because codes are not images.

        Raises:
            DataError: always.
        """
        # load() refuses earlier, with a longer message; this is for direct callers.
        raise DataError(f"codes:{path} holds codes, not images: name the images they were made of")
