"""A run as text for people: its facts in lines, with its curves.

:func:`describe` gathers the facts, :func:`render` lays them out for a terminal.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping

from tessella.pipeline.run_record import SplitRecord
from tessella.report.curves import draw
from tessella.report.figure_text import Row, figure_rows, shown
from tessella.report.run_facts import (
    QUIET,
    RunFacts,
    TrainingFacts,
    describe,
    of_codes,
    states_bound,
)

__all__ = [
    "RunFacts",
    "data_lines",
    "describe",
    "duration",
    "environment_lines",
    "figure_rows",
    "measured_on",
    "model_lines",
    "networks",
    "of_codes",
    "render",
    "shown",
    "status_line",
    "training_lines",
    "validation_rows",
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
    "optimizer",
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


def render(facts: RunFacts, width: int = 80, colour: bool = False) -> str:
    """The facts as text for people, with the curves.

    Args:
        facts: from :func:`describe`.
        width: columns of the terminal.
        colour: whether the curves may have colours, as on a terminal.
    """
    width = max(NARROWEST, width)
    lines = [f"{facts['name']}: {facts['title']}", ""]
    for label, texts in _sections(facts):
        indent = f"{label:{LABEL_WIDTH}}"
        for text in texts:
            if label == "next":
                # Commands are there to be copied, so they stay in one line.
                lines.append(indent + text)
            else:
                lines += _wrapped(text, width, indent)
            # Only the first line of a section has its label.
            indent = " " * LABEL_WIDTH
    rendered = "\n".join(map(_printable, lines))
    drawn = draw(facts["curves"], width, colour, of_codes(facts))
    if drawn:
        rendered += f"\n\n{drawn}"
    return rendered


def measured_on(facts: RunFacts, name: str) -> str:
    """The images that figures were measured on, and whether with the weights that are here now."""
    weights = facts["figures"][name].get("weights")
    # Figures outlive the weights that they were measured with.
    if weights and facts["weights"] and weights != facts["weights"]:
        return f"{name} (with other weights, {weights}: measure again)"
    return name


def validation_rows(facts: RunFacts) -> list[Row]:
    """The figures of the best validation, of codes under the names of codes."""
    figures = dict(facts["validation"]["figures"])
    name = "bits_per_code" if of_codes(facts) else "bits_per_dim"
    if states_bound(facts):
        name = f"bound_{name}"
    if "bits_per_dim" in figures:
        # First, as the figure by which the best is chosen.
        figures = {name: figures.pop("bits_per_dim"), **figures}
    return figure_rows(figures)


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


def status_line(facts: RunFacts) -> str:
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
    line = status
    if done:
        line += f", {done}"
    if facts["bundled"]:
        line += "; ships with the package"
    unreadable = facts["log"]["unreadable"]
    if unreadable:
        line += f"; {unreadable} lines of the log cannot be read"
    return line


def model_lines(part: Mapping[str, object]) -> list[str]:
    """A model or tokenizer in words."""
    words = [str(part["name"])]
    head = part.get("head")
    if isinstance(head, Mapping):
        words.append(f"{head['name']} head")
    if part.get("classes"):
        words.append(f"{part['classes']} classes")
    for name, value in _sizes(part).items():
        if name not in HIDDEN_SIZES and value != "":
            words.append(f"{name} {value}")
    parameters = part["parameters"]
    assert isinstance(parameters, int)
    return [f"{', '.join(words)}; {_count(parameters)} parameters", str(part["maps"])]


def _sizes(part: Mapping[str, object]) -> dict[str, object]:
    """The sizes of a network by name, with the options of its quantizer."""
    sizes: dict[str, object] = {}
    # Density models keep their sizes apart, tokenizers among their other arguments.
    apart = part.get("sizes")
    if isinstance(apart, Mapping) and apart:
        sizes.update(apart)
    else:
        for name, value in part.items():
            if name not in NOT_SIZES:
                sizes[name] = value
    options = sizes.get("options")
    if isinstance(options, Mapping):
        sizes.update(options)
    return sizes


def data_lines(facts: RunFacts) -> list[str]:
    """The images that a run was trained on, in words."""
    lines = []
    identities = facts["data"]
    for split, identity in identities.items():
        lines.append(f"{split}: {_split_line(identity)}")
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


def _split_line(identity: SplitRecord) -> str:
    """The images of one split, in words."""
    shape = "x".join(map(str, identity.get("shape") or []))
    line = f"{identity.get('source') or 'arrays'}, "
    line += f"{identity.get('count') or 0:,} images of {shape}"
    levels = (identity.get("preprocessing") or {}).get("levels")
    if levels:
        line += f" of {levels} levels"
    # Sixteen digits tell data sets apart; the record has them all.
    line += f", sha256 {(identity.get('sha256') or '')[:16]}"
    skipped = identity.get("skipped")
    if skipped:
        line += f", {skipped} files skipped"
    return line


def training_lines(training: TrainingFacts) -> list[str]:
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
        # Of several limits, the first that is reached ends the run.
        if settings.get(name):
            limits.append(f"{shown(settings[name])} {name}")
    words = []
    for name in SETTINGS:
        if name in settings:
            value = settings[name]
            # Without the digits of rounding: 0.3 and not 0.30000000000000004.
            if isinstance(value, float):
                value = f"{value:g}"
            words.append(f"{name.replace('_', ' ')} {value}")
    return [*lines, f"until {', '.join(limits) or 'stopped'}; {', '.join(words)}"]


def environment_lines(facts: RunFacts) -> list[str]:
    """Versions and machine of a run, its command and when it was resumed, in words."""
    made = facts["environment"]
    words = []
    versions: Mapping[str, object] = made
    for name, label in VERSIONS.items():
        if name in versions:
            words.append(f"{label} {versions[name]}".strip())
    words += _numbered(made.get("cores"), "core")
    words += _numbered(made.get("threads"), "thread")
    processes = made.get("world_size") or 1
    if processes > 1:
        words.append(f"{processes} processes")
    lines = [", ".join(words)]
    started = made.get("started")
    if started:
        lines.append(f"started {started}")
    command = made.get("command")
    if command:
        lines.append("command: " + " ".join(command))
    # A sitting is a part of the run between two interruptions; the first is the run's start.
    for sitting in facts["sittings"]:
        then = sitting.get("environment") or {}
        lines.append(
            f"resumed at step {sitting.get('step') or 0:,}, {then.get('started') or ''}, "
            f"{then.get('device') or ''}"
        )
    return lines


def _numbered(count: int | None, noun: str) -> list[str]:
    """A count with its noun; nothing where there is none."""
    if not count:
        return []
    if count == 1:
        return [f"1 {noun}"]
    return [f"{count} {noun}s"]


def networks(facts: RunFacts) -> dict[str, dict[str, object]]:
    """The facts of the networks that there are, by role: ``model``, ``tokenizer``."""
    found = {}
    if facts["model"]:
        found["model"] = facts["model"]
    if facts["tokenizer"]:
        found["tokenizer"] = facts["tokenizer"]
    return found


def _sections(facts: RunFacts) -> Iterator[tuple[str, list[str]]]:
    """Labels and the lines beside them."""
    yield "run", [f"{facts['run']}, {_size(facts['bytes'])} on disk"]
    yield "status", [status_line(facts), *facts["problems"]]
    for role, part in networks(facts).items():
        yield role, model_lines(part)
    if facts["weights"]:
        yield "weights", [f"fingerprint {facts['weights']}"]
    if facts["data"]:
        yield "data", data_lines(facts)
    if facts["training"]["settings"]:
        yield "trained", training_lines(facts["training"])
    validation = facts["validation"]
    if validation["figures"]:
        best = []
        for row in validation_rows(facts):
            # Name, value and unit, of which the last may be empty.
            best.append(" ".join(filter(None, row)))
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
    """A line without control characters, which could take over a terminal."""
    letters = []
    for letter in line:
        letters.append(letter if letter.isprintable() else "?")
    return "".join(letters)


def _size(count: int) -> str:
    if count < 1e5:
        return f"{count / 1e3:.1f} kB"
    return f"{count / 1e6:.1f} MB"


def _count(count: int) -> str:
    if count < 1e5:
        return f"{count:,}"
    return f"{count / 1e6:.3g} M"
