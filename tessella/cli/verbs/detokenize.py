"""``tessella detokenize``."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tessella.cli.picture_output import write_images
from tessella.cli.terminal import say
from tessella.cli.verb_options import Detokenize
from tessella.errors import InputError
from tessella.pipeline import load_saved, pick_device, require_codes
from tessella.storage import code_store


def run(command: Detokenize) -> int:
    """Decode codes and write the images."""
    tokenizer = require_codes(load_saved(command.run, pick_device(command.device)), command.run)
    # Codes remember which tokenizer made them; another one is refused here.
    codes = code_store.open_codes(command.codes, tokenizer)
    if command.n > len(codes):
        raise InputError(
            f"--n must lie in 0..{len(codes)}, the images that {command.codes} holds,"
            f" got {command.n}"
        )
    n = command.n or len(codes)
    # Equal codes through an equal decoder give equal images: that is all there is to record.
    made = {"model": codes.tokenizer, "codes": codes.identity()["sha256"], "seed": 0, "n": n}
    height, width = codes.image_size

    def batches(first: int) -> Iterator[np.ndarray]:
        return code_store.decoded(codes, tokenizer, first, n, command.batch)

    force = bool(command.force)
    shape = (height, width, tokenizer.channels)
    wrote = write_images(command.out, made, shape, batches, command.batch, force)
    done = ""
    if not wrote:
        done = "nothing to do, there are "
    say(f"{done}{n} images of {height}x{width}: {command.out}")
    return 0
