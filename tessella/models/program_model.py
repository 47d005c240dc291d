"""Models whose cached step is a list of operations (``tessella.nn.stepping``)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from tessella.heads import JointHead
from tessella.models.condition import Cond, Condition
from tessella.models.density_model import DensityModel, JointWalk
from tessella.nn.last_layer import LastLayer
from tessella.nn.stepping.runs import RunsNow, SteppedSymbols
from tessella.nn.stepping.state import State
from tessella.nn.stepping.step import StateMemory


@dataclass
class ProgramState(State):
    """The cached state of a walk; a family derives its own if it holds more."""

    derived: ClassVar[frozenset[str]] = frozenset({"programs"})

    walk: JointWalk
    """The walk of a joint head."""
    labels: torch.Tensor | None
    """Class of each image: ``int64 [batch]``."""
    memory: StateMemory
    """The memory of all layers."""
    programs: SteppedSymbols | None = field(default=None, kw_only=True)
    """Written on the memory of this state, so a copy writes its own."""


class ProgramModel(DensityModel):
    """Base of the models that step through programs.

    All values that a step needs, weights as well as biases, go through the memory of its state.
    A family says once which programs are due before a symbol (:meth:`write_programs`): the step of
    this class runs them one by one, and the compiled kernel goes through those of many symbols in
    one call.
    """

    programs_are_final = True

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        own = vars(cls)
        changes_step = "step" in own or "finished" in own
        # A class that changes the step does something that its programs do not say, and the kernel,
        # which goes through programs alone, must not draw from it; unless it says that it may.
        if changes_step and "programs_are_final" not in own:
            cls.programs_are_final = False

    @abstractmethod
    def state_in(self, memory: StateMemory, condition: Condition, batch: int) -> ProgramState:
        """The state before the first symbol, in a given memory.

        Args:
            memory: empty, except for the constants of an exact twin.
            condition: condition of each image, as :meth:`condition` returns it.
            batch: number of images.
        """

    def init_state(self, batch: int, cond: Cond = None) -> State:
        # Check the condition before allocating any memory.
        condition = self.condition(cond, batch)
        return self.state_in(StateMemory(), condition, batch)

    @abstractmethod
    def write_programs(self, state: ProgramState, batch: int) -> SteppedSymbols:
        """Write the programs of a new or copied state of ``batch`` images.

        This fills the memory of a new state.
        """

    def stepped(self, state: State) -> SteppedSymbols:
        """The programs of a state, which are written now if it is a fresh copy without any."""
        assert isinstance(state, ProgramState)
        if state.programs is None:
            state.programs = self.write_programs(state, len(state.memory.tensors[0]))
        return state.programs

    @torch.no_grad()
    def step(self, previous: torch.Tensor, index: int, state: State) -> tuple[torch.Tensor, State]:
        assert isinstance(state, ProgramState)
        stepped = self.stepped(state)
        if index:
            stepped.newest[(index - 1) % self.grid.channels].copy_(previous)
        stepped.add_runs(RunsNow(), index)
        # The next step overwrites this memory, so the caller and a joint head get a copy.
        if not isinstance(self.head, JointHead):
            return self.finished(stepped.parameters.clone(), state), state
        begins_pixel = index % self.grid.channels == 0
        pixel = self.finished(stepped.parameters.clone(), state) if begins_pixel else None
        return self.walk_pixel(pixel, previous, index, state.walk), state

    def finished(self, parameters: torch.Tensor, state: State) -> torch.Tensor:
        """What the head takes, made of what the programs made.

        A family whose programs leave something to do overrides this, and clears
        :attr:`programs_are_final`, unless what :meth:`write_programs` returns says what is left.
        """
        return parameters


class TwinModel(ProgramModel):
    """Base of the models whose operations all have an integer form.

    Since all values go through the memory of the state, integers can be put in their place, see
    :meth:`DensityModel.exact`.
    """

    mixes = True

    @abstractmethod
    def last_layers(self) -> Sequence[LastLayer]:
        """The layers that make the head's parameters, of as many outputs each."""

    def output_weights(self) -> Sequence[torch.Tensor]:
        return [layer.weight for layer in self.last_layers()]
