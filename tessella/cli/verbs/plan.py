"""``tessella plan``."""

from __future__ import annotations

from tessella import files, planning
from tessella.cli.terminal import answer, say
from tessella.cli.verb_options import Plan
from tessella.config import load_recipe
from tessella.models import MODELS
from tessella.planning import GB, Hardware


def run(command: Plan) -> int:
    """Print the plan, and write it as JSON where that was asked for."""
    recipe = load_recipe(command.recipe, command.overrides)
    # With plugins the names could not be checked before.
    if recipe.model is not None:
        MODELS.get_or_explain(recipe.model.name)
    hardware = Hardware(
        kind=command.gpu if command.gpus else "cpu",
        devices=command.gpus or recipe.train.devices,
        nodes=command.nodes,
        memory=GB * command.memory,
        flops=1e12 * command.flops,
        network=GB * command.network,
    )
    planned = planning.planned_task(recipe, command.tokenizer)
    made = planning.plan(planned, hardware, command.images)
    answer(planning.text_of(made))
    if command.json:
        files.write_json(command.json, planning.facts_of(made))
        say(f"written: {command.json}")
    return 0
