"""``tessella data verify``."""

from __future__ import annotations

from collections import Counter

from tessella import config, files
from tessella.cli.checks import data_overrides
from tessella.cli.terminal import answer, say
from tessella.cli.verb_options import Verify
from tessella.config import DataConfig
from tessella.data.verification import Verification, verify_source

SHOWN = 5
"""Lines of a table for one kind of finding; the JSON file has up to a thousand."""


def run(command: Verify) -> int:
    """Print what was found in a source; 1 when images are damaged."""
    values = {**data_overrides(command.overrides), "source": command.source}
    chosen = config.from_dict(DataConfig, values, "data")
    found = verify_source(chosen)
    if command.json:
        files.write_json(command.json, dict(vars(found)))
    for line in _table(found):
        answer(line)
    if command.json:
        say(f"everything by name: {command.json}")
    return 1 if found.damage else 0


def _table(found: Verification) -> list[str]:
    """The findings as lines of three columns: what, how many, of which kind."""
    lines = []
    for split, count in found.images.items():
        lines.append(_line("images", count, split))
    lines += _ranked("size", found.sizes)
    for split, classes in found.classes.items():
        least, fewest = min(classes.items(), key=lambda item: item[1])
        most, largest = max(classes.items(), key=lambda item: item[1])
        what = f"{split}: from {fewest} ({least}) to {largest} images ({most})"
        lines.append(_line("classes", len(classes), what))
    if found.without_label:
        lines.append(_line("without label", found.without_label, "where other images have one"))
    lines.append(_line("damaged", found.damage.total(), ""))
    lines += _ranked("  reason", found.damage)
    lines += [f"    {line}" for line in found.damaged[:SHOWN]]
    across = f"{found.copied_across_splits} of them of an image of another split"
    lines.append(_line("copies", found.copied, across if found.copied else ""))
    lines += [f"    {' = '.join(group[:SHOWN])}" for group in found.copies[:SHOWN]]
    if found.left_out:
        lines.append(_line("not images", len(found.left_out), ""))
        lines += [f"    {line}" for line in found.left_out[:SHOWN]]
    return lines


def _ranked(what: str, counts: Counter[str]) -> list[str]:
    """The most frequent kinds of something."""
    lines = []
    for kind, count in counts.most_common(SHOWN):
        lines.append(_line(what, count, kind))
    rest = len(counts) - len(lines)
    if rest:
        others = counts.total() - sum(count for _, count in counts.most_common(SHOWN))
        lines.append(_line(what, others, f"{rest} others"))
    return lines


def _line(what: str, count: int, kind: str) -> str:
    return f"{what:<14}{count:>9}  {kind}".rstrip()
