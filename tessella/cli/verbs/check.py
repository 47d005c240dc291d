"""``tessella check``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tessella import config
from tessella.cli.terminal import answer
from tessella.cli.verb_options import Check
from tessella.contracts import Outcome, check
from tessella.errors import ArtifactError, ConfigError
from tessella.storage import code_set


def run(command: Check) -> int:
    """Print a line for each contract; 1 when one is broken."""
    # Printed one by one: the contracts of a large model take a while.
    total = 0
    broken = 0
    for outcome in _outcomes(command):
        answer(str(outcome))
        total += 1
        broken += not outcome.held
    answer(f"{total - broken} of {total} contracts hold")
    return 1 if broken else 0


def _outcomes(command: Check) -> Iterator[Outcome]:
    # A directory that holds codes is meant even where a model has its name.
    if (Path(command.name) / code_set.CONFIG).is_file():
        return _check_codes(Path(command.name))
    options = config.apply_overrides({}, command.overrides)
    for key, value in options.items():
        if isinstance(value, dict):
            raise ConfigError(f"give arguments of the class without a table, got {key}.*")
    return check(command.name, command.kind, **options)


def _check_codes(path: Path) -> Iterator[Outcome]:
    """Whether every shard of codes is what was written."""
    codes = code_set.open_codes(path)
    for number, shard in enumerate(codes.shards):
        # Reading a shard compares it with its hash.
        problem = ""
        try:
            codes.shard(number)
        except ArtifactError as error:
            problem = str(error)
        yield Outcome("its codes are what was written", shard.name, problem, seconds=0.0)
