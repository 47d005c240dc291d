"""``tessella compress``."""

from __future__ import annotations

from tessella import files
from tessella.bulk.coding_stages import CompressStage
from tessella.bulk.items import items_of
from tessella.bulk.packing import CompressedPacking
from tessella.bulk.units import StageUnits
from tessella.cli.bulk_work import check_is_file, make_units, unit_images, uses_units
from tessella.cli.run_twin import set_threads, tokenizer_of_run, twin_of_run
from tessella.cli.terminal import complain, say
from tessella.cli.verb_options import Compress
from tessella.codec.archive_writer import ArchiveWriter
from tessella.codec.container import HAS_FILES, IS_LIST, IS_LOSSY, IS_WIDE, TOKENIZER_BYTES
from tessella.codec.file_names import names_problem
from tessella.codec.picture_files import (
    check_losses,
    find_pictures,
    read_for_tokenizer,
    read_picture,
)
from tessella.codec.pictures_as_codes import as_codes
from tessella.errors import InputError
from tessella.pipeline import fingerprint
from tessella.storage import image_writer

FEW = 5
"""Files that are named where something is left out."""


def run(command: Compress) -> int:
    """Compress files to one file."""
    set_threads(command.threads)
    if uses_units(command.work, command.out):
        return _run_in_units(command)
    check_is_file(command.out)
    # From here to the twin nothing is written: what cannot be kept is said first.
    pictures, others = find_pictures(command.paths)
    problem = names_problem([picture.name for picture in pictures])
    if problem:
        raise InputError(f"these files cannot be kept in one archive: {problem}")
    _tell("left out, no images", others)
    tokenizer = tokenizer_of_run(command.run)
    if tokenizer is None:
        _tell("not kept", check_losses(pictures, drop=bool(command.drop_metadata)))
    else:
        complain(f"{command.run} has a tokenizer: the file will hold its codes, not all pixels")

    twin = twin_of_run(command.run)
    writer = ArchiveWriter(twin, command.group, command.batch)
    symbols = 0
    with image_writer.progress(len(pictures)) as watch:
        for number, picture in enumerate(pictures):
            if tokenizer is None:
                image = read_picture(picture, twin.grid.levels)
                symbols += image.symbols.size
            else:
                values = read_for_tokenizer(picture, tokenizer.channels)
                image = as_codes(values, tokenizer, picture.name)
                symbols += values.size
            writer.add(image)
            watch(number + 1)
    if tokenizer is None:
        data = writer.finish(HAS_FILES | IS_LIST)
    else:
        stored = bytes.fromhex(fingerprint(tokenizer))[:TOKENIZER_BYTES]
        data = writer.finish(HAS_FILES | IS_LIST | IS_WIDE | IS_LOSSY, stored)
    files.write_bytes(command.out, data)
    bits = 8 * len(data) / symbols
    say(f"{len(pictures)} images, {len(data):,} bytes, {bits:.3f} bits/dim: {command.out}")
    return 0


def _run_in_units(command: Compress) -> int:
    """Compress every image to a file of its own, in tar files of a unit each."""
    items = items_of(command.paths)
    # Made here, where there is none: each process would make its own.
    twin = twin_of_run(command.run)
    made: dict[str, object] = {"model": twin.id, **items.identity()}
    if tokenizer_of_run(command.run) is not None:
        complain(f"{command.run} has a tokenizer: the files will hold its codes, not all pixels")
    stage = CompressStage(
        command.run, plugins=command.plugin, drop_metadata=bool(command.drop_metadata)
    )
    units = StageUnits(stage, items, CompressedPacking(), unit_images(command.work))
    found = make_units(command.out, "compressed files", made, units, command.work)
    size = sum(file.bytes for file in found)
    say(f"{units.images} images in {len(found)} files of {size:,} bytes: {command.out}")
    return 0


def _tell(what: str, lines: list[str]) -> None:
    """Say on standard error what an archive does not hold."""
    if not lines:
        return
    shown = "; ".join(lines[:FEW])
    if len(lines) > FEW:
        shown += f"; and {len(lines) - FEW} more"
    complain(f"{what}: {shown}")
