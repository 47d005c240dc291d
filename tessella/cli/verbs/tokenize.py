"""``tessella tokenize``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tessella.bulk.code_units import shards_made_by
from tessella.bulk.stages import TokenizeStage
from tessella.cli.bulk_work import engine_of
from tessella.cli.run_images import chosen_data, load_images
from tessella.cli.terminal import say
from tessella.cli.verb_options import Tokenize
from tessella.pipeline import load_saved, pick_device, require_codes
from tessella.storage import code_store, image_writer
from tessella.tokenizers import Tokenizer


def run(command: Tokenize) -> int:
    """Encode the images of one split, or of each."""
    tokenizer = require_codes(load_saved(command.run, pick_device(command.device)), command.run)
    # Of each split a directory of its own, where codes:PATH looks for them.
    out = Path(command.out)
    places = {command.split: out}
    if command.split == "each":
        places = {split: out / split for split in ("train", "valid", "test")}
    elsewhere = _elsewhere(command, tokenizer)
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
                elsewhere=elsewhere(split),
            )
        grids = " and ".join(str(grid) for grid in codes.grids)
        say(f"{len(codes)} images, {split}, {grids}: {place}")
    return 0


def _elsewhere(
    command: Tokenize, tokenizer: Tokenizer
) -> Callable[[str], code_store.MakesShards | None]:
    """What makes the shards of a split, where threads of this process do not."""
    engine = engine_of(command.work)
    # Threads share one model, and are as fast as processes.
    if command.work.engine == "inprocess" and command.work.actors <= 1:
        return lambda split: None
    stage = TokenizeStage(command.run, device=command.device, plugins=command.plugin)
    source = chosen_data(command, tokenizer)
    return lambda split: shards_made_by(engine, stage, source, split)
