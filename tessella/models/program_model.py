"""Models whose cached step is a list of operations (``tessella.nn.stepping``)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch

from tessella.models.condition import Cond, Condition
from tessella.models.density_model import DensityModel
from tessella.nn.last_layer import LastLayer
from tessella.nn.stepping.state import State
from tessella.nn.stepping.step import StateMemory


class ProgramModel(DensityModel):
    """Base of the models that step through programs.

    All values that a step needs, weights as well as biases, go through the memory of its state.
    """

    @abstractmethod
    def state_in(self, memory: StateMemory, condition: Condition, batch: int) -> State:
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
