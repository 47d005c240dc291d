"""``digits``: the 8x8 handwritten digits that come with the package.

Source and licence are in ``digits.LICENSE.txt``.
"""

from __future__ import annotations

from importlib import resources

import numpy as np

from tessella.config import DataConfig
from tessella.data.source_kinds import Source, register_source
from tessella.data.splits import permuted
from tessella.data.transform import Part, fit_arrays
from tessella.errors import DataError

VALID = 150
TEST = 297


@register_source("digits")
class DigitsSource(Source):
    """The bundled digits."""

    about = "the bundled 8x8 handwritten digits"
    argument = ""

    def read(self, path: str, split: str, config: DataConfig) -> Part:
        """One split of the 1,797 images ``uint8 [n, 8, 8, 1]``: 1,350 train, 150 valid, 297 test.

        The splits are consecutive parts of ``numpy.random.default_rng(0).permutation(1797)``. The
        original values v of 0..16 are stored as ``round(255 v / 16)``. Source: E. Alpaydin and C.
        Kaynak, UCI Optical Recognition of Handwritten Digits, CC BY 4.0.

        Raises:
            DataError: when a path is given.
        """
        if path:
            raise DataError(
                f"digits come with the package and take no path, got digits:{path}; write digits"
            )
        with (
            (resources.files("tessella.data") / "digits.npz").open("rb") as file,
            np.load(file, allow_pickle=False) as arrays,
        ):
            images = arrays["images"]  # [1797, 8, 8]
            labels = arrays["labels"]  # [1797]
        # The original is sorted by writer, so consecutive parts of it would differ; parts of a
        # permutation do not.
        index = permuted(len(images), split, valid=VALID, test=TEST)
        part = Part(
            images=images[index][..., None],
            labels=labels[index].astype(np.int64),
            label_names=tuple("0123456789"),
            levels=17,  # shades of ink, which stay distinct as 8-bit values
            split_rule="numpy default_rng(0).permutation(1797), parts of 1350, 150 and 297",
        )
        return fit_arrays(part, config)
