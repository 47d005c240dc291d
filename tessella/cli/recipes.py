"""The recipe that a ``tessella train`` command describes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tessella import config, files
from tessella.cli.flags import given_fields
from tessella.cli.verb_options import Train
from tessella.config import Recipe, TrainConfig
from tessella.errors import ConfigError

LIMITS = ("minutes", "steps", "epochs")
"""Limits that end a run. One that is given replaces those of the recipe."""


def new_recipe(command: Train) -> Recipe:
    """Return the recipe of a run to begin.

    Raises:
        ConfigError: for names, keys or values that do not exist, or contradict each other.
    """
    if not command.recipe:
        names = ", ".join(config.recipe_names())
        raise ConfigError(f"give a recipe ({names}, or a .toml file), or --resume RUN")
    # --model stands first, so that model.layers= and the like are sizes of that model.
    overrides = list(command.overrides)
    if command.model:
        _check_model(command)
        overrides.insert(0, f'model.name="{command.model}"')
    recipe = config.load_recipe(command.recipe, overrides)
    if command.data:
        recipe = replace(recipe, data=replace(recipe.data, source=command.data))
    if command.tokenizer:
        recipe = replace(recipe, prior_of=command.tokenizer)
    return _with_options(recipe, command)


def new_run(command: Train) -> Path:
    """Return the directory of a run to begin: ``--out``, or a name made of the recipe's."""
    if command.out:
        return Path(command.out)
    # The model belongs to the name: two models of one recipe are two runs.
    name = Path(command.recipe).stem
    if command.model:
        name += f"-{command.model}"
    return Path("runs") / name


def resumed_recipe(command: Train) -> Recipe:
    """Return the recipe of a run to resume; only how long and where to train may change.

    Raises:
        ConfigError: for options that would change what is trained.
        ArtifactError: when there is no run, or its record is damaged.
    """
    check_resume(command)
    run = Path(command.resume)
    if not (run / "run.json").exists():
        raise ConfigError(f"{run} holds no run: it has no run.json")
    stored = files.read_json_object(run / "run.json").get("recipe")
    if not isinstance(stored, dict) or "data" not in stored:
        raise ConfigError(f"{run} was trained on arrays: resume it with ts.train(..., resume=True)")
    # The record has all tables of a recipe, also those that this one does not have.
    given = {table: values for table, values in stored.items() if values is not None}
    recipe: Recipe = config.from_dict(
        Recipe, config.apply_overrides(given, _train_overrides(command))
    )
    if command.data:
        # The images at another place; their hashes decide whether they are those of the run.
        recipe = replace(recipe, data=replace(recipe.data, source=command.data))
    return _with_options(recipe, command)


def check_resume(command: Train) -> None:
    """Refuse options that a resumed run takes from its record.

    Raises:
        ConfigError: naming them.
    """
    is_recipe_name = command.recipe and "=" not in command.recipe
    given = {
        "RECIPE": is_recipe_name,
        "--tokenizer": command.tokenizer,
        "--model": command.model,
        "--out": command.out,
        "--start-or-resume": command.start_or_resume,
    }
    refused = [name for name, value in given.items() if value]
    if refused:
        raise ConfigError(
            "--resume takes all but --data and training options from the run: leave"
            f" {' and '.join(refused)} out"
        )
    for override in _train_overrides(command):
        if not override.startswith("train."):
            raise ConfigError(f"--resume can only change train.*, got {override!r}")


def _train_overrides(command: Train) -> list[str]:
    # With --resume the first key=value word stands where the recipe would.
    if not command.recipe:
        return list(command.overrides)
    return [command.recipe, *command.overrides]


def _check_model(command: Train) -> None:
    """Refuse a --model for a recipe that trains no density model, or that is given twice."""
    if config.load_recipe(command.recipe).model is None:
        raise ConfigError(
            f"--model names a density model, and the recipe {command.recipe} trains a tokenizer"
        )
    for override in command.overrides:
        if override.partition("=")[0].strip() == "model.name":
            raise ConfigError("--model and model.name= say the same: give one of them")


def _with_options(recipe: Recipe, command: Train) -> Recipe:
    """The recipe with the training options of the command."""
    changes = given_fields(command, TrainConfig)
    values = config.to_dict(recipe.train)
    # A limit that was given is meant to be the only one.
    if any(limit in changes for limit in LIMITS):
        values |= dict.fromkeys(LIMITS, 0)
    train: TrainConfig = config.from_dict(TrainConfig, values | changes, "train")
    return replace(recipe, train=train)
