"""``tessella compress``."""

from __future__ import annotations

from tessella import files
from tessella.cli.run_twin import set_threads, twin_of_run
from tessella.cli.terminal import complain, say
from tessella.cli.verb_options import Compress
from tessella.codec.archive_writer import ArchiveWriter
from tessella.codec.container import HAS_FILES, IS_LIST
from tessella.codec.file_names import names_problem
from tessella.codec.picture_files import check_losses, find_pictures, read_picture
from tessella.errors import InputError
from tessella.storage import image_writer

FEW = 5
"""Files that are named where something is left out."""


def run(command: Compress) -> int:
    """Compress files to one file."""
    set_threads(command.threads)
    # From here to the twin nothing is written: what cannot be kept is said first.
    pictures, others = find_pictures(command.paths)
    problem = names_problem([picture.name for picture in pictures])
    if problem:
        raise InputError(f"these files cannot be kept in one archive: {problem}")
    lost = check_losses(pictures, drop=bool(command.drop_metadata))
    _tell("left out, no images", others)
    _tell("not kept", lost)

    twin = twin_of_run(command.run)
    writer = ArchiveWriter(twin, command.group, command.batch)
    symbols = 0
    with image_writer.progress(len(pictures)) as watch:
        for number, picture in enumerate(pictures):
            image = read_picture(picture, twin.grid.levels)
            symbols += image.symbols.size
            writer.add(image)
            watch(number + 1)
    data = writer.finish(HAS_FILES | IS_LIST)
    files.write_bytes(command.out, data)
    bits = 8 * len(data) / symbols
    say(f"{len(pictures)} images, {len(data):,} bytes, {bits:.3f} bits/dim: {command.out}")
    return 0


def _tell(what: str, lines: list[str]) -> None:
    """Say on standard error what an archive does not hold."""
    if not lines:
        return
    shown = "; ".join(lines[:FEW])
    if len(lines) > FEW:
        shown += f"; and {len(lines) - FEW} more"
    complain(f"{what}: {shown}")
