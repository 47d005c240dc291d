"""Compress: a picture as a ``.tsl`` file, and its size beside that of a PNG file."""

from __future__ import annotations

import base64
import io
import json
from pathlib import PurePath

import numpy as np

from tessella.codec.archive_writer import ArchiveWriter, CodedImage
from tessella.codec.container import HAS_FILES, IS_LIST, IS_LOSSY, IS_WIDE, TOKENIZER_BYTES
from tessella.codec.file_names import names_problem
from tessella.codec.image_modes import MODES_OF_ARRAYS, as_symbols
from tessella.codec.picture_files import MODE_NUMBERS, as_picture
from tessella.codec.pictures_as_codes import as_codes
from tessella.errors import ConfigError, InputError
from tessella.exact import ExactModel
from tessella.files import JSONValue
from tessella.pipeline import Generator, fingerprint
from tessella.pipeline.kept_twin import exact_twin_of
from tessella.web.page_requests import as_text
from tessella.web.served_models import ServedModel
from tessella.web.uploads import fitted_picture, picture_from
from tessella.web.work_queue import Computation, Work

MOST_SYMBOLS = 1 << 18
"""Symbols of a picture that is compressed here; the command line has no such limit."""

LONGEST_NAME = 100
"""Characters of a file's name that are kept."""


class FileSizes:
    """Compresses pictures, one after another; twins are loaded when they are first needed.

    It computes in the thread of the models only, so nothing is locked.
    """

    def __init__(self) -> None:
        self._twins: dict[str, ExactModel] = {}

    def compressing(
        self,
        data: bytes,
        name: str,
        served: ServedModel,
        *,
        fit: bool = False,
        grey: bool = False,
    ) -> Work:
        """The work of compressing a picture.

        A pixel model keeps all pixels. A two-stage model keeps its codes.

        Args:
            data: the bytes of an image file.
            name: of the file, to be kept in the archive.
            served: the model.
            fit: scale the picture to the model's size first.
            grey: keep one channel of a grey picture in a file of colours, as browsers make them.

        Raises:
            InputError: when there is no model of one grid.
        """
        if not isinstance(served.model, Generator) or len(served.model.priors) != 1:
            raise InputError(f"{served.name} has no density model of one grid to compress with")
        model = served.model
        kept_name = _kept_name(name)

        def compress(job: Computation) -> bytes:
            values = _pixels(data, fit, grey, served)
            png = _png_bytes(values)
            twin = self._twin(served)
            job.check()
            writer = _StoppingWriter(twin, job)
            flags = HAS_FILES | IS_LIST
            stored = b""
            if model.two_stage:
                writer.add(as_codes(values, model.tokenizer, kept_name))
                flags |= IS_WIDE | IS_LOSSY
                stored = bytes.fromhex(fingerprint(model.tokenizer))[:TOKENIZER_BYTES]
            else:
                symbols, scaled = as_symbols(values, twin.grid.levels, prefer_scaled=True)
                mode = MODE_NUMBERS[MODES_OF_ARRAYS[values.shape[2]]]
                writer.add(CodedImage(symbols, scaled, mode, name=kept_name))
            packed = writer.finish(flags, stored)
            height, width, channels = values.shape
            facts: dict[str, JSONValue] = {
                "file": base64.b64encode(packed).decode("ascii"),
                "name": PurePath(kept_name).stem + ".tsl",
                "bytes": len(packed),
                "png_bytes": len(png),
                "upload_bytes": len(data),
                "height": height,
                "width": width,
                "channels": channels,
                "bits_per_dim": 8 * len(packed) / values.size,
                "lossless": not model.two_stage,
            }
            if values.size <= MOST_SYMBOLS:
                facts["image"] = as_text(values)
            return json.dumps(facts).encode()

        return compress

    def _twin(self, served: ServedModel) -> ExactModel:
        if served.name not in self._twins:
            try:
                self._twins[served.name] = exact_twin_of(served.run, served.model, print)
            except ConfigError as error:
                raise ConfigError(
                    f"{served.name} cannot compress: {error}. Take another model"
                ) from error
        return self._twins[served.name]


class _StoppingWriter(ArchiveWriter):
    """A writer that stops between two groups when the client has left."""

    def __init__(self, twin: ExactModel, job: Computation) -> None:
        super().__init__(twin)
        self._job = job

    def _encode_group(self) -> None:
        self._job.check()
        super()._encode_group()


def _pixels(data: bytes, fit: bool, grey: bool, served: ServedModel) -> np.ndarray:
    """The picture to compress, ``uint8 [height, width, channels]``."""
    if fit:
        return fitted_picture(data, served, 1)
    # A tokenizer takes pictures of its channels only.
    channels = 1 if grey else 0
    if not served.model.tokenizer.of_pixels:
        channels = served.size[2]
    values = np.array(picture_from(data, channels))
    if values.ndim == 2:
        values = values[:, :, None]
    if values.size > MOST_SYMBOLS:
        raise InputError(
            f"this picture has {values.size:,} values, and at most {MOST_SYMBOLS:,} are compressed"
            " on the page: let it be scaled to the model, or take tessella compress"
        )
    return values


def _png_bytes(values: np.ndarray) -> bytes:
    """The picture as a PNG file, as small as the library makes it."""
    content = io.BytesIO()
    mode = MODES_OF_ARRAYS[values.shape[2]]
    as_picture(values, mode).save(content, "PNG", optimize=True)
    return content.getvalue()


def _kept_name(name: str) -> str:
    """The name of the file as an archive can keep it."""
    last = PurePath(name.replace("\\", "/")).name[-LONGEST_NAME:]
    if not last or names_problem([last]):
        return "picture.png"
    return last
