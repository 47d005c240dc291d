"""``tessella train``."""

from __future__ import annotations

from pathlib import Path

from tessella.cli import recipes
from tessella.cli.run_images import or_name_the_data
from tessella.cli.terminal import say
from tessella.cli.verb_options import Train
from tessella.models import family
from tessella.training import signals, train_recipe


def run(command: Train) -> int:
    """Train what the command describes; 130 when it was interrupted, 75 when it had to make way."""
    resume = bool(command.resume)
    if resume:
        recipe = recipes.resumed_recipe(command)
        out = Path(command.resume)
    else:
        recipe = recipes.new_recipe(command)
        out = recipes.new_run(command)
        # A directory without run.json holds no run yet, whatever else of an early end is in it.
        resume = bool(command.start_or_resume) and (out / "run.json").exists()
    # With plugins the names could not be checked before; a misspelt one must not wait for images.
    if recipe.model is not None:
        family(recipe.model.name)
    # Only a resumed run has images of its own, which may have moved since.
    own_images = bool(command.resume) and not command.data
    with or_name_the_data(is_given=not own_images), signals.leaving():
        trained = train_recipe(recipe, out, resume=resume, say=say)
    return trained.status
