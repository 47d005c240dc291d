"""Words of the command line to the options of a verb.

The parser is tyro. Mistakes that people make often are looked for before it is asked, so that they
get one sentence with the nearest name: a misspelt verb, a misspelt option, a value that is none of
the choices, a word that is no number.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from collections.abc import Callable, Iterator
from typing import Literal, get_args, get_origin

import tyro

from tessella.cli.flags import OPTIONAL, Flag, flags
from tessella.cli.verb_options import VERBS, Common
from tessella.errors import InputError, nearest

ABOUT = (
    "Images as discrete symbols: density models, tokenizers, priors;"
    " exact likelihoods, exact fast sampling."
)

CONFIG = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff)


def parse(words: list[str]) -> Common:
    """Read the words of a command.

    Returns:
        An instance of the dataclass of its verb. Help is printed, and exits.

    Raises:
        InputError: for words that are no command.
    """
    if not words or words[0] in ("-h", "--help"):
        _show_verbs()
    verb = words[0]
    if verb not in VERBS:
        near = nearest(verb, VERBS) or "."
        raise InputError(f"{verb!r} is no verb of tessella{near} Verbs: {', '.join(VERBS)}")
    # Whoever asks for help gets it, whatever else is wrong with the words.
    rest = words[1:]
    if not {"-h", "--help"} & set(rest):
        _check_words(verb, rest)
    return _parsed(verb, rest)


def _parsed(verb: str, words: list[str]) -> Common:
    """Let tyro read the words; what it prints about a mistake becomes an error of ours."""
    # tyro prints a box and exits; the box is caught, and its words are reworded.
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            command: Common = tyro.cli(
                VERBS[verb],
                prog=f"tessella {verb}",
                args=_options_first(verb, words),
                config=CONFIG,
            )
            return command
    except SystemExit as stop:
        if not stop.code:
            raise  # help was asked for
        raise InputError(_without_box(printed.getvalue(), verb)) from None


def _show_verbs() -> None:
    """Print the verbs with the first line of their help, and exit."""
    # Empty classes: the options of each verb stand in its own help.
    brief: dict[str, Callable[..., object]] = {}
    for verb, options in VERBS.items():
        shown = dataclasses.make_dataclass(options.__name__, [])
        shown.__doc__ = (options.__doc__ or "").split("\n")[0]
        brief[verb] = shown
    tyro.extras.subcommand_cli_from_dict(brief, prog="tessella", description=ABOUT, args=["--help"])


def _check_words(verb: str, words: list[str]) -> None:
    """Refuse misspelt options, values that are none of the choices, and too many words."""
    known = {flag.name: flag for flag in flags(VERBS[verb]) if not flag.is_positional}
    help_hint = f"see tessella {verb} --help"
    rest = iter(words)
    for word in rest:
        if not word.startswith("--"):
            continue
        name, equals, value = word.partition("=")
        # --top_k is as good as --top-k.
        flag = known.get(name.replace("_", "-"))
        if flag is None:
            near = nearest(name, known)
            raise InputError(f"{verb} has no option {name}{near} ({help_hint})")
        if not flag.takes_value:
            continue
        if not equals:
            if _takes_any_number(flag):
                continue
            # The value is the next word, which is then looked at no more.
            following = next(rest, None)
            if following is None:
                raise InputError(f"{name} needs a value ({help_hint})")
            value = following
        _check_value(flag, value)


def _check_value(flag: Flag, value: str) -> None:
    """Refuse a word that is no value of its flag."""
    hint = flag.hint
    if get_origin(hint) is Literal:
        # An empty choice stands for an option that was not given.
        choices = [str(choice) for choice in get_args(hint) if choice]
        if value not in choices:
            raise InputError(
                f"{flag.name} must be one of {', '.join(choices)}, got {value!r}"
                f"{nearest(value, choices, likeness=0.7)}"
            )
    if hint is int or hint is float:
        try:
            hint(value)
        except ValueError:
            kind = "a whole number" if hint is int else "a number"
            raise InputError(f"{flag.name} must be {kind}, got {value!r}") from None


def _takes_any_number(flag: Flag) -> bool:
    """Whether a flag takes none, one or several words, such as ``--report``."""
    return get_origin(flag.hint) is tuple and OPTIONAL in flag.notes


def _options_first(verb: str, words: list[str]) -> list[str]:
    """Move the positional words behind the options.

    Words such as ``model.layers=3`` may stand anywhere, which the parser would not take.
    """
    if not any(re.match(r"\w+(\.\w+)*=", word) for word in words):
        return words
    # A switch takes no value, so the word behind it is not its own.
    switches = {flag.name for flag in flags(VERBS[verb]) if not flag.takes_value} | {"--help"}
    options: list[str] = []
    positional: list[str] = []
    rest: Iterator[str] = iter(words)
    for word in rest:
        if not word.startswith("-"):
            positional.append(word)
            continue
        options.append(word)
        if word.startswith("--") and "=" not in word and word not in switches:
            options += [value for value in [next(rest, None)] if value is not None]
    return options + positional


def _without_box(printed: str, verb: str) -> str:
    """The sentence of tyro about a mistake, without the box, its title and the hint to the help."""
    # Rules divide the box: what is wrong, then similar options, then where to find help.
    sections: list[list[str]] = [[]]
    for line in printed.splitlines():
        text = line.strip(" │")
        is_rule = re.fullmatch(r"[─-]{8,}", text)
        if line.startswith(("╭", "╰")):
            continue  # borders, of which the upper one holds the title
        if is_rule:
            sections.append([])
        else:
            sections[-1].append(text)
    if "╭" not in printed:
        sections = sections[1:]  # where the terminal has no such characters, the title is a line
    text = " ".join(" ".join(sections[0]).split()) if sections else printed
    # The two sentences of tyro that say too much or too little.
    missing = re.match(rf"Missing from tessella {verb}: (\S+) (.*?)\.? \(required\)", text)
    unexpected = re.match(r"Unrecognized options: (.*)", text)
    if missing:
        text = f"{verb} needs {missing[1]}: {missing[2]}"
    elif unexpected:
        text = f"{verb} takes no further words, got {unexpected[1]}"
    text = re.sub(r"^Error parsing \S+: ", "", text).rstrip(".")
    return f"{text} (see tessella {verb} --help)"
