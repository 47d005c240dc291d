"""``tessella export``."""

from __future__ import annotations

from tessella.cli.terminal import say
from tessella.cli.verb_options import Export
from tessella.exchange.exporting import export


def run(command: Export) -> int:
    """Write the files, and say how near they are to the model."""
    written = export(command.run, command.out, command.format, force=bool(command.force))
    for item in written:
        compared = ""
        if command.format != "safetensors":
            compared = f"; differs from the model by {item.difference:.1e} at most"
        say(f"{command.out}/{item.file}: {item.about}{compared}")
    say(f"{command.out}/README.md: how to use them")
    return 0
