"""``tessella import``."""

from __future__ import annotations

from tessella import config
from tessella.cli.terminal import say
from tessella.cli.verb_options import Import
from tessella.exchange.importing import Imported, import_checkpoint
from tessella.models import Hierarchy
from tessella.pipeline.building import grids_of

NEXT = {
    "tokenizer": "tessella tokenize {out} --data folder:PHOTOS --split all",
    "density-model": "tessella sample {out}",
    "generator": "tessella sample {out}",
    "prior": "import it again with --tokenizer RUN, to draw images",
}
"""What to do with each kind of saved model."""


def run(command: Import) -> int:
    """Convert a checkpoint, and say what it became."""
    out = command.out or f"runs/{command.kind}"
    made = import_checkpoint(
        command.kind,
        command.checkpoint,
        out,
        tokenizer=command.tokenizer or None,
        facts=config.apply_overrides({}, command.overrides),
        prefix=command.prefix,
        force=bool(command.force),
    )
    for line in _described(made):
        say(line)
    say(f"{out}: {NEXT[made.kind].format(out=out)}")
    return 0


def _described(made: Imported) -> list[str]:
    """A line for each network: its name, its grids, its size."""
    lines = []
    for role, network in made.networks.items():
        assert not isinstance(network, Hierarchy)
        weights = sum(parameter.numel() for parameter in network.parameters())
        grids = " and ".join(str(grid) for grid in grids_of(network))
        lines.append(f"{role}: {network.name}, {grids}, {weights:,} parameters")
    return lines
