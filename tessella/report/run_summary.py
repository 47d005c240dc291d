"""A run as text for people: its facts in lines, with its curves.

:func:`describe` gathers the facts, :func:`render` lays them out for a terminal.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from tessella.report.curves import draw
from tessella.report.figure_text import figure_rows, shown
from tessella.report.run_facts import QUIET, describe

__all__ = [
    "data_lines",
    "describe",
    "duration",
    "environment_lines",
    "figure_rows",
    "measured_on",
    "model_lines",
    "render",
    "shown",
    "status_line",
    "training_lines",
]

LABEL_WIDTH = 12
"""Columns of the labels at the left."""

NARROWEST = 40
"""Columns that a terminal has at least."""

NOT_SIZES = ("name", "image_size", "channels", "maps", "grid")
"""Entries of a network's facts that are not among its sizes."""

HIDDEN_SIZES = ("parameters", "levels", "options")
"""Sizes that are shown elsewhere."""

SETTINGS = (
    "batch",
    "learning_rate",
    "weight_decay",
    "average",
    "seed",
    "precision",
    "threads",
    "devices",
)
"""Settings of training that are shown."""

VERSIONS = {
    "tessella": "tessella",
    "torch": "torch",
    "python": "Python",
    "system": "",
    "device": "",
}
"""Entries of the environment, and the words before them."""


def render(facts: Mapping[str, Any], width: int = 80, colour: bool = False) -> str:
    """The facts as text for people, with the curves.

    Args:
        facts: from :func:`describe`.
        width: columns of the terminal.
        colour: whether the curves may have colours, as on a terminal.
    """
    width = max(NARROWEST, width)
    lines = [f"{facts['name']}: {facts['title']}", ""]
    for label, texts in _sections(facts):
        for number, text in enumerate(texts):
            indent = f"{label if number == 0 else '':{LABEL_WIDTH}}"
            if label == "next":
                # Commands are there to be copied, so they stay in one line.
                lines.append(indent + text)
            else:
                lines += _wrapped(text, width, indent)
    text = "\n".join(_printable(line) for line in lines)
    drawn = draw(facts["curves"], width, colour)
    return f"{text}\n\n{drawn}" if drawn else text


def measured_on(facts: Mapping[str, Any], name: str) -> str:
    """The images that figures were measured on, and whether with the weights that are here now."""
    weights = facts["figures"][name].get("weights")
    # Figures outlive the weights that they were measured with.
    if weights and facts["weights"] and weights != facts["weights"]:
        return f"{name} (with other weights, {weights}: measure again)"
    return name


def duration(seconds: float) -> str:
    """A time for people.

    >>> duration(42.4), duration(905.6), duration(7300)
    ('42 s', '15 min 6 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def status_line(facts: Mapping[str, Any]) -> str:
    """How a run stands."""
    training = facts["training"]
    status = facts["status"]
    done = ""
    if training["steps"]:
        done = f"{training['steps']:,} steps in {duration(training['seconds'])}"
    # A model that was saved from Python has no record of training.
    if status == "saved":
        if facts["bundled"]:
            return "ships with the package"
        return "a saved model, without a record of its training"
    if status == "running":
        return _running_line(done, facts["log"]["age_seconds"])
    line = f"{status}, {done}" if done else status
    if facts["bundled"]:
        line += "; ships with the package"
    unreadable = facts["log"]["unreadable"]
    if unreadable:
        line += f"; {unreadable} lines of the log cannot be read"
    return line


def model_lines(part: Mapping[str, Any]) -> list[str]:
    """A model or tokenizer in words."""
    sizes = part.get("sizes")
    if not sizes:
        sizes = {name: value for name, value in part.items() if name not in NOT_SIZES}
    # Options of a quantizer are sizes too.
    sizes = {**sizes, **(sizes.get("options") or {})}
    words = [str(part["name"])]
    if isinstance(part.get("head"), Mapping):
        words.append(f"{part['head']['name']} head")
    if part.get("classes"):
        words.append(f"{part['classes']} classes")
    for name, value in sizes.items():
        if name not in HIDDEN_SIZES and value != "":
            words.append(f"{name} {value}")
    return [f"{', '.join(words)}; {_count(part['parameters'])} parameters", part["maps"]]


def data_lines(facts: Mapping[str, Any]) -> list[str]:
    """The images that a run was trained on, in words."""
    lines = []
    identities = facts["data"]
    for split, identity in identities.items():
        shape = "x".join(str(side) for side in identity.get("shape") or [])
        levels = (identity.get("preprocessing") or {}).get("levels")
        skipped = identity.get("skipped")
        line = f"{split}: {identity.get('source') or 'arrays'}, "
        line += f"{identity.get('count') or 0:,} images of {shape}"
        line += f" of {levels} levels" if levels else ""
        line += f", sha256 {str(identity.get('sha256') or '')[:16]}"
        line += f", {skipped} files skipped" if skipped else ""
        lines.append(line)
    # The rule is that of all splits, so it is said once.
    for identity in identities.values():
        if identity.get("split_rule"):
            lines.append(f"split: {identity['split_rule']}")
            break
    if facts["overlap"]:
        lines.append(
            f"{facts['overlap']:,} validation images are, pixel for pixel, training images too"
        )
    return lines


def training_lines(training: Mapping[str, Any]) -> list[str]:
    """How a run was trained, in words."""
    lines = []
    if training["recipe"]:
        lines.append(f"recipe {training['recipe']}")
    elif training["about"]:
        lines.append(training["about"])
    if training["prior_of"]:
        lines.append(f"on the codes of {training['prior_of']}")
    settings = training["settings"]
    limits = []
    for name in ("steps", "epochs", "minutes"):
        if settings.get(name):
            limits.append(f"{shown(settings[name])} {name}")
    words = []
    for name in SETTINGS:
        if name in settings:
            value = settings[name]
            number = f"{value:g}" if isinstance(value, float) else str(value)
            words.append(f"{name.replace('_', ' ')} {number}")
    return [*lines, f"until {', '.join(limits) or 'stopped'}; {', '.join(words)}"]


def environment_lines(facts: Mapping[str, Any]) -> list[str]:
    """Versions and machine of a run, its command and when it was resumed, in words."""
    made = facts["environment"]
    words = []
    for name, label in VERSIONS.items():
        if name in made:
            words.append(f"{label} {made[name]}".strip())
    for name in ("cores", "threads"):
        count = made.get(name)
        if count:
            words.append(f"{count} {name.removesuffix('s') if count == 1 else name}")
    if made.get("world_size", 1) > 1:
        words.append(f"{made['world_size']} processes")
    lines = [", ".join(words)]
    if made.get("started"):
        lines.append(f"started {made['started']}")
    if made.get("command"):
        lines.append("command: " + " ".join(made["command"]))
    for sitting in facts["sittings"]:
        then = sitting.get("environment") or {}
        lines.append(
            f"resumed at step {sitting.get('step') or 0:,}, {then.get('started') or ''}, "
            f"{then.get('device') or ''}"
        )
    return lines


def _sections(facts: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Labels and the lines beside them."""
    yield "run", [f"{facts['run']}, {_size(facts['bytes'])} on disk"]
    yield "status", [status_line(facts), *facts["problems"]]
    for part in ("model", "tokenizer"):
        if facts[part]:
            yield part, model_lines(facts[part])
    if facts["weights"]:
        yield "weights", [f"fingerprint {facts['weights']}"]
    if facts["data"]:
        yield "data", data_lines(facts)
    if facts["training"]["settings"]:
        yield "trained", training_lines(facts["training"])
    validation = facts["validation"]
    if validation["figures"]:
        best = []
        for row in figure_rows(validation["figures"]):
            best.append(" ".join(part for part in row if part))
        yield "validation", [f"{', '.join(best)}; best, at step {validation['step'] or 0:,}"]
    for name, figures in facts["figures"].items():
        lines = [measured_on(facts, name)]
        # Indented under the data they were measured on.
        for label, value, unit in figure_rows(figures):
            lines.append(f"   {label:32}{value:>18} {unit}".rstrip())
        yield "measured", lines
    if facts["environment"]:
        yield "made with", environment_lines(facts)
    if facts["next"]:
        yield "next", facts["next"]


def _running_line(done: str, age: float | None) -> str:
    """How a run stands that says it is running; ``age`` is that of its log in seconds."""
    words = ["running"]
    if done:
        words.append(done)
    if age is None:
        words.append("its log has no line yet")
    else:
        words.append(f"the last line of its log is {duration(age)} old")
    line = ", ".join(words)
    if age is not None and age > QUIET:
        line += "; the process may be gone: resume it"
    return line


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    lines = textwrap.wrap(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=" " * (LABEL_WIDTH + 2),
        break_long_words=False,
        break_on_hyphens=False,
    )
    # An empty text wraps to nothing, and its label would be lost.
    return lines or [indent]


def _printable(line: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in line)


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def _count(count: int) -> str:
    return f"{count / 1e6:.3g} M" if count >= 1e5 else f"{count:,}"
