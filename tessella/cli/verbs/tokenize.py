"""``tessella tokenize``."""

from __future__ import annotations

from pathlib import Path

from tessella.cli.run_images import load_images
from tessella.cli.terminal import say
from tessella.cli.verb_options import Tokenize
from tessella.pipeline import load_saved, pick_device, require_codes
from tessella.storage import code_store, image_writer


def run(command: Tokenize) -> int:
    """Encode the images of one split, or of each."""
    tokenizer = require_codes(load_saved(command.run, pick_device(command.device)), command.run)
    # Of each split a directory of its own, where codes:PATH looks for them.
    out = Path(command.out)
    places = {command.split: out}
    if command.split == "each":
        places = {split: out / split for split in ("train", "valid", "test")}
    for split, place in places.items():
        images = load_images(command, tokenizer, split)
        with image_writer.progress(len(images)) as watch:
            codes = code_store.tokenize(
                tokenizer,
                images,
                place,
                mirrored=bool(command.mirrored),
                workers=command.workers,
                watch=watch,
            )
        grids = " and ".join(str(grid) for grid in codes.grids)
        say(f"{len(codes)} images, {split}, {grids}: {place}")
    return 0
