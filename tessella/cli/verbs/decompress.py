"""``tessella decompress``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tessella import files
from tessella.cli.run_twin import find_tokenizer, set_threads
from tessella.cli.terminal import say
from tessella.cli.verb_options import Decompress
from tessella.codec.container import HAS_FILES, IS_LOSSY, read_container
from tessella.codec.image_modes import MODES, MODES_OF_ARRAYS, PALETTE
from tessella.codec.model_lookup import find_twin
from tessella.codec.picture_files import as_picture, free_name, write_picture
from tessella.codec.pictures_as_codes import decoded_pictures
from tessella.codec.random_access import read_archive
from tessella.codec.stream_reader import StreamReader
from tessella.errors import InputError
from tessella.storage import image_writer


def run(command: Decompress) -> int:
    """Decompress a file to a folder, which appears when all of it is there."""
    set_threads(command.threads)
    path = Path(command.archive)
    container = read_container(read_archive(path), command.max_pixels)
    contents = container.contents
    twin = find_twin(contents.model, command.model, path.parent)
    images = StreamReader(container, twin, command.batch).images()
    if contents.flags & IS_LOSSY:
        tokenizer = find_tokenizer(contents.tokenizer, command.model, path.parent)
        images = decoded_pictures(images, contents, tokenizer)
    count = container.layout.images
    # Names of arrays are numbers; files whose format would lose pixels get another ending.
    names = list(contents.names)
    if not contents.flags & HAS_FILES:
        names = [f"{number:06d}.png" for number in range(count)]
    taken = set(names)
    palettes = iter(contents.palettes)
    with files.atomic_directory(command.out) as folder, image_writer.progress(count) as watch:
        for number, values in enumerate(images):
            kind = contents.run_of(number).mode
            palette = next(palettes) if kind == PALETTE else b""
            mode = MODES[kind].name or _mode_of_array(values)
            name = free_name(names[number], mode, taken)
            taken.add(name)
            write_picture(folder / name, as_picture(values, mode, palette))
            watch(number + 1)
    say(f"{count} images: {command.out}")
    return 0


def _mode_of_array(values: np.ndarray) -> str:
    """How an array is written as a file.

    Raises:
        InputError: when it cannot be.
    """
    mode = MODES_OF_ARRAYS.get(values.shape[2])
    if mode is None or values.dtype != np.uint8:
        raise InputError(
            f"the file holds arrays of {values.shape[2]} channels of {values.dtype}, which are no"
            " pictures: read them with ts.decompress"
        )
    return mode
