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
    each = command.split == "each"
    for split in ("train", "valid", "test") if each else (command.split,):
        images = load_images(command, tokenizer, split)
        out = Path(command.out) / split if each else Path(command.out)
        with image_writer.progress(len(images)) as watch:
            codes = code_store.tokenize(
                tokenizer,
                images,
                out,
                mirrored=bool(command.mirrored),
                workers=command.workers,
                watch=watch,
            )
        grids = " and ".join(str(grid) for grid in codes.grids)
        say(f"{len(codes)} images, {split}, {grids}: {out}")
    return 0
