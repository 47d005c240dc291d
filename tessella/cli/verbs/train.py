"""``tessella train``."""

from __future__ import annotations

from pathlib import Path

from tessella.cli import recipes
from tessella.cli.run_images import or_name_the_data
from tessella.cli.terminal import say
from tessella.cli.verb_options import Train
from tessella.models import family
from tessella.training import train_recipe


def run(command: Train) -> int:
    """Train what the command describes; 130 when it was interrupted."""
    if command.resume:
        recipe = recipes.resumed_recipe(command)
        out = Path(command.resume)
    else:
        recipe = recipes.new_recipe(command)
        out = recipes.new_run(command)
    # With plugins the names could not be checked before; a misspelt one must not wait for images.
    if recipe.model is not None:
        family(recipe.model.name)
    # Only a resumed run has images of its own, which may have moved since.
    with or_name_the_data(is_given=bool(command.data) or not command.resume):
        trained = train_recipe(recipe, out, resume=bool(command.resume), say=say)
    return 130 if trained.interrupted else 0
