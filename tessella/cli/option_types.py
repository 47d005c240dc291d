"""Types of the values of options that several verbs have."""

from __future__ import annotations

from typing import Annotated, Literal

import tyro
from tyro.conf import arg

from tessella.cli.flags import Within

# The metavar is the word that help texts show.
RunName = Annotated[str, arg(metavar="RUN")]
Overrides = Annotated[tuple[str, ...], arg(metavar="[KEY=VALUE ...]")]
Device = Literal["auto", "cpu", "cuda"]
Split = Literal["train", "valid", "test", "all"]
ImportKind = Literal[
    "taming-vqgan",
    "taming-gpt",
    "llamagen-vq",
    "llamagen-gpt",
    "diffusers-vqmodel",
    "var-vqvae",
    "vq-vae-2-pytorch",
    "pixel-cnn-pp",
]
# Given without a value; 0 where it was not given.
Switch = tyro.conf.UseCounterAction[int]

# Numbers with bounds that hold wherever they are asked for.
Threads = Annotated[int, Within(0, 4096)]


def _training_sources(_: str) -> str:
    """The hint of ``train --data``: what images, or codes of images, can come from."""
    return (
        f"({_source_forms(False)}; for a prior also {_source_forms(True)}; default: the recipe's)"
    )


def _image_sources(_: str) -> str:
    """The hint of ``--data`` of the verbs that work on images."""
    return f"({_source_forms(False)}; default: the run's)"


def all_sources(_: str) -> str:
    """The hint of a word that names a source of images."""
    return f"({_source_forms(False)})"


def _source_forms(holds_codes: bool) -> str:
    """The ways of naming a source of images, or one of codes."""
    # Called when a help text is shown: only then are the readers, and with them numpy, imported.
    from tessella.data import SOURCES

    forms = [source.form for source in SOURCES.values() if source.holds_codes == holds_codes]
    return ", ".join(forms)


# Sources can be registered, so help texts look their names up in the table.
TrainingSource = Annotated[str, arg(help_behavior_hint=_training_sources)]
ImageSource = Annotated[str, arg(help_behavior_hint=_image_sources)]
