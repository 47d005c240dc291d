"""``tessella shards``."""

from __future__ import annotations

from pathlib import Path

from tessella import config
from tessella.cli.checks import data_overrides
from tessella.cli.terminal import say
from tessella.cli.verb_options import Pack
from tessella.config import DataConfig
from tessella.files import byte_count
from tessella.storage import image_writer
from tessella.storage.shard_input import shard_input
from tessella.storage.shard_writer import write_shards


def run(command: Pack) -> int:
    """Write the images of every split."""
    values = {**data_overrides(command.overrides), "source": command.source}
    chosen = config.from_dict(DataConfig, values, "data")
    with shard_input(chosen) as given:
        total = sum(len(split.sizes) for split in given.splits.values())
        with image_writer.progress(total) as watch:
            manifest = write_shards(
                given,
                Path(command.out),
                name=command.name,
                images=command.images,
                most_bytes=command.megabytes << 20,
                workers=command.workers,
                watch=watch,
                say=say,
            )
    for split, entries in manifest["splits"].items():
        count = sum(entry["count"] for entry in entries)
        size = byte_count(sum(entry["bytes"] for entry in entries))
        say(f"{split}: {count} images in {len(entries)} shards, {size}: {command.out}")
    return 0
