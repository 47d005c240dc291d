"""Directives that document the program from the program itself, while the site is built.

``command-line`` lists the verbs and their options, as the parser of the command line knows them.
``recipe-tables`` lists the keys of a recipe, and ``recipes`` the recipes that ship.
``registered`` documents every class of a table, such as the density models.

Each directive writes Markdown, which the page then reads like its own text.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module

import tyro
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from tessella import config
from tessella.cli.flags import field_texts
from tessella.cli.parsing import CONFIG
from tessella.cli.verb_options import VERBS, Common

Lines = Iterator[str]

TABLES = {
    "data": config.DataConfig,
    "model": config.ModelConfig,
    "tokenizer": config.TokenizerConfig,
    "vae": config.VAEConfig,
    "adversarial": config.AdversarialConfig,
    "train": config.TrainConfig,
    "expected": config.ExpectedConfig,
}
"""The tables of a recipe, in the order of a recipe."""


class Written(SphinxDirective):
    """A directive whose text a function writes."""

    write: Callable[..., Lines]
    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The text as a part of the page, sections included."""
        text = "\n".join(type(self).write(*self.arguments))
        return self.parse_text_to_nodes(text, allow_section_headings=True)


# ---- The command line ----


def parser_of(verb: str) -> argparse.ArgumentParser:
    """The parser of a verb."""
    with warnings.catch_warnings():
        # tyro calls this deprecated, and has nothing else that gives the options one by one.
        warnings.simplefilter("ignore", DeprecationWarning)
        parser = tyro.extras.get_parser(
            VERBS[verb], prog=f"tessella {verb}", config=CONFIG, console_outputs=False
        )
    # tyro brings its own copy of argparse, which has the same attributes.
    return typing.cast(argparse.ArgumentParser, parser)


def command_line() -> Lines:
    """Every verb: what it does, examples, positional words and options."""
    yield from ("## Options of every verb", "", "```{program} tessella", "```", "")
    common = {"--" + field.name.replace("_", "-") for field in dataclasses.fields(Common)}
    for action in parser_of("info")._actions:
        if common & set(action.option_strings):
            yield from option(action)
    for verb in VERBS:
        yield from verb_section(verb, common)


def verb_section(verb: str, common: set[str]) -> Lines:
    """One verb.

    Args:
        verb: its name.
        common: options that are described elsewhere.
    """
    parser = parser_of(verb)
    about, examples = split_examples(parser.description or "")
    yield from (f"## {verb}", "", about, "")
    if examples:
        yield from ("```bash", *examples, "```", "")
    yield from (f"```{{program}} tessella {verb}", "```", "")
    for group in parser._action_groups:
        actions = [
            action
            for action in group._group_actions
            if not {"-h", *common} & set(action.option_strings)
        ]
        if not actions:
            continue
        if group.description:
            yield from (marked(group.description), "")
        for action in actions:
            yield from option(action)


def split_examples(description: str) -> tuple[str, list[str]]:
    """The text of a description, and the commands after it, without their prompt."""
    examples = re.findall(r"^\s*\$ (.*)$", description, re.MULTILINE)
    about = re.sub(r"^\s*\$ .*$", "", description, flags=re.MULTILINE).strip()
    return marked(about), examples


def option(action: argparse.Action) -> Lines:
    """An option or a positional word, with its help."""
    names = ", ".join(action.option_strings)
    # Of an option that need not be given, tyro shows None as one of the values.
    value = str(action.metavar or "").replace("{None}|", "").replace("{None,", "{")
    text = (action.help or "").replace(" (repeatable)", "").replace(" (required)", "")
    # An empty default is none.
    text = re.sub(r" \(default:\s*(None|'')?\s*\)", "", text)
    yield from (f":::{{option}} {names} {value}".rstrip(), marked(text), ":::", "")


# ---- Recipes ----


def recipe_tables() -> Lines:
    """The keys of every table of a recipe, with their types and defaults."""
    for name, table in TABLES.items():
        about = first_paragraph(table)
        yield from (f"## The table `[{name}]`", "", about, "")
        texts = field_texts(table)
        hints = typing.get_type_hints(table)
        for field in dataclasses.fields(table):
            # Sizes stand beside the other keys, under the names that the class gives them.
            if field.name == "sizes":
                continue
            yield from (f"`{name}.{field.name}`", f": {key_facts(hints[field.name], field)}")
            if field.name in texts:
                yield from ("", f"  {markdown(texts[field.name])}")
            yield ""


def key_facts(hint: object, field: dataclasses.Field[object]) -> str:
    """The type of a key and its default, in a few words."""
    if typing.get_origin(hint) is typing.Literal:
        choices = [f"`{choice}`" for choice in typing.get_args(hint) if choice]
        kind = "one of " + ", ".join(choices)
    else:
        kinds = {str: "text", int: "whole number", float: "number", bool: "true or false"}
        kind = kinds.get(hint, "table" if "Mapping" in str(hint) else "list")  # type: ignore[call-overload]
    if field.default in (dataclasses.MISSING, ""):
        return kind
    default = str(field.default).lower() if isinstance(field.default, bool) else field.default
    if isinstance(default, tuple):
        default = list(default)
    return f"{kind}; default `{default}`"


def recipes() -> Lines:
    """The recipes that ship: what each is."""
    for name in config.recipe_names():
        about = config.load_recipe(name).about or "No description."
        yield from (f"`{name}`", f": {marked(' '.join(about.split()))}", "")


# ---- Classes in tables ----


def registered(table: str) -> Lines:
    """Every class of a table, with the arguments of its constructor.

    Args:
        table: such as ``models.MODELS``.
    """
    module, name = table.rsplit(".", 1)
    classes: Mapping[str, type] = getattr(import_module(f"tessella.{module}"), name)
    for key, cls in classes.items():
        where = f"{cls.__module__}.{cls.__qualname__}"
        yield from (f"### `{key}`", "", "```{eval-rst}", f".. autoclass:: {where}", "```", "")


# ---- Text ----


def first_paragraph(cls: type) -> str:
    """What a docstring says first, as Markdown."""
    return markdown(" ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split()))


def markdown(text: str) -> str:
    """A text of a docstring as Markdown: its literals are the same, its roles become names."""
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)


def marked(text: str) -> str:
    """A text of the program in which options are marked as code; else their hyphens become dashes.

    >>> marked("with --data npz:PATH, or ``--n``")
    'with `--data npz:PATH`, or ``--n``'
    """
    return re.sub(r"(?<![`\w])--[\w-]+( \w+:[A-Z]+)?", r"`\g<0>`", text)


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directives."""
    writers: dict[str, Callable[..., Lines]] = {
        "command-line": command_line,
        "recipe-tables": recipe_tables,
        "recipes": recipes,
        "registered": registered,
    }
    for name, write in writers.items():
        app.add_directive(name, type("Written", (Written,), {"write": staticmethod(write)}))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
