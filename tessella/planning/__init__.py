"""Plans: what a training run takes in memory, time and traffic, before it has a machine.

:func:`plan` counts what a step of a recipe does (:mod:`~tessella.planning.step_counts`), prices
every way to take it (:mod:`~tessella.planning.memory_parts`,
:mod:`~tessella.planning.compute_time`, :mod:`~tessella.planning.traffic`), and chooses
(:mod:`~tessella.planning.choice`). ``docs/scale.md`` has the formulas, and how far they are from
what was measured.
"""

from tessella.planning.accelerators import ACCELERATORS, GB, Hardware
from tessella.planning.choice import TrainingPlan, plan
from tessella.planning.plan_text import facts_of, text_of
from tessella.planning.recipe_task import PlannedTask, planned_task

__all__ = [
    "ACCELERATORS",
    "GB",
    "Hardware",
    "TrainingPlan",
    "PlannedTask",
    "facts_of",
    "plan",
    "planned_task",
    "text_of",
]
