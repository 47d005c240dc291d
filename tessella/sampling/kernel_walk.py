"""Draws many symbols in one call of the compiled kernel (``tessella/kernel/walk.cpp``).

The kernel runs the programs that are due before each symbol, makes the table of the head, applies
the rule, adds the noise and writes the likeliest level where the next step looks it up. It takes
the same noise as :class:`tessella.sampling.walk.Draw` and computes in double precision, so both
draw the same symbols, unless the two best scores are tied to within rounding.

Not every walk can be taken this way; :meth:`KernelWalk.of` says which.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
import torch

from tessella import kernel
from tessella.heads import CategoricalHead, Head, LogisticMixtureHead
from tessella.heads.ordinal import OrdinalHead, OrdinalHeadOfMixed
from tessella.models.density_model import DensityModel, check_finite
from tessella.nn import linear_predictor
from tessella.nn.linear_predictor import LinearPredictor
from tessella.nn.stepping.compiled import CompiledRunner, compare_layouts, fields_of
from tessella.nn.stepping.operation import Matrix
from tessella.nn.stepping.program import Program
from tessella.nn.stepping.runs import ListedRuns, SteppedSymbols
from tessella.nn.stepping.state import State
from tessella.noise import Noise
from tessella.sampling.known_symbols import KnownSymbols
from tessella.sampling.rule import Rule

SOFTMAX_HEADS = (CategoricalHead, OrdinalHeadOfMixed)
"""Heads whose parameters are logits of the levels."""

SECONDS_A_CALL = 0.2
"""After this time a call returns, so that the program can be interrupted, and is made again."""

LISTED_SYMBOLS = 1 << 14
"""Symbols whose runs are listed at a time; the list of a larger grid would take much memory."""

WALK = np.dtype(
    [
        ("bytes", np.int64),
        ("images", np.int64),
        ("rows", np.int64),
        ("height", np.int64),
        ("width", np.int64),
        ("channels", np.int64),
        ("levels", np.int64),
        ("programs", np.int64),
        ("program_count", np.int64),
        ("starts", np.int64),
        ("runs", np.int64),
        ("values", np.int64),
        ("variables", np.int64),
        ("listed", np.int64),
        ("parameters", np.int64),
        ("parameter_stride", np.int64),
        ("newest", np.int64),
        ("x", np.int64),
        ("given", np.int64),
        ("guidance", np.float64),
        ("temperature", np.float64),
        ("top_p", np.float64),
        ("top_k", np.int64),
        ("components", np.int64),
        ("mixtures", np.int64),
        ("sets", np.int64),
        ("averages", np.int64),
        ("coefficients", np.int64),
        ("rest", np.int64),
        ("rest_size", np.int64),
        ("thresholds", np.int64),
        ("thresholds_a_kind", np.int64),
        ("first_class", np.int64),
        ("kinds", np.int64),
        ("neighbours", np.int64),
        ("neighbour_count", np.int64),
        ("differences", np.int64),
        ("difference_count", np.int64),
        ("inputs", np.int64),
        ("input_stride", np.int64),
        ("correction", np.int64),
        ("unit_shift", np.float64),
        ("seconds", np.float64),
    ]
)
"""Everything about a walk that stays, see ``Walk`` in ``tables.h``."""


class KernelWalk:
    """Draws stretches of symbols of ``n`` images.

    Args:
        model: a density model.
        stepped: its programs.
        n: number of images.
    """

    def __init__(self, model: DensityModel, stepped: SteppedSymbols, n: int) -> None:
        library = kernel.library()
        assert library is not None
        _check_layout(library)
        self.model = model
        self._stepped = stepped
        self._call = library.tessella_walk
        # Records hold bare addresses, so what they point to is kept here.
        self._kept: list[object] = []
        self._record = np.zeros(1, dtype=WALK)
        self._reached = np.zeros(1, dtype=np.int64)
        self._noise: Noise | None = None
        self._listed = range(0)
        self._programs: list[Program] = []
        self._correction: Program | None = None
        grid = model.grid
        parameters = stepped.parameters
        self._mixing: Program | None = None
        if type(model.head) is OrdinalHead:
            parameters, self._mixing = _mixing_program(model.head, parameters, stepped.sets)
        newest = np.array([tensor.data_ptr() for tensor in stepped.newest])
        self._set(
            bytes=parameters.element_size(),
            images=n,
            rows=len(parameters),
            height=grid.height,
            width=grid.width,
            channels=grid.channels,
            levels=grid.levels,
            parameters=self._address(parameters),
            parameter_stride=parameters.stride(0),
            newest=self._address(newest),
            sets=stepped.sets,
            correction=-1,
            seconds=SECONDS_A_CALL,
        )
        if stepped.sets > 1:
            self._set(averages=self._address(np.zeros((len(parameters), 2 * stepped.sets))))
        if isinstance(model.head, LogisticMixtureHead):
            size = library.tessella_mixture_size(model.head.components, grid.channels)
            mixtures = np.zeros((len(parameters), size))
            self._set(components=model.head.components, mixtures=self._address(mixtures))
        if model.predictor is not None:
            self._set_predictor(model.predictor)

    @classmethod
    def of(cls, model: DensityModel, state: State, n: int) -> KernelWalk | None:
        """The walk of a state; None where the kernel cannot take it.

        It takes the models whose steps are compiled programs, with the heads of this package.
        """
        if not _is_known(model.head) or not kernel.available():
            return None
        stepped = model.stepped(state) if model.programs_are_final else None
        if stepped is None or stepped.parameters.device.type != "cpu":
            return None
        walk = cls(model, stepped, n)
        # What the first symbols need is compiled if anything is.
        programs = walk._list(0)
        if not all(isinstance(program.runner(), CompiledRunner) for program in programs):
            return None
        return walk

    def begin(self, x: torch.Tensor, noise: Noise, rule: Rule, kept: KnownSymbols | None) -> None:
        """Begin new images, or take up others.

        Args:
            x: receives the symbols, ``int64 [n, symbols]``, contiguous; holds those drawn before.
            noise: noise of the images.
            rule: changes the distributions.
            kept: symbols that are not drawn.
        """
        assert x.is_contiguous()
        self._x = x
        self._noise = noise
        self._given = None if kept is None else torch.where(kept.known, kept.x, -1).contiguous()
        self._set(
            x=x.data_ptr(),
            given=0 if self._given is None else self._given.data_ptr(),
            temperature=rule.temperature,
            top_k=rule.top_k,
            top_p=rule.top_p,
            guidance=rule.guidance,
        )

    def draw(self, first: int, last: int) -> None:
        """Draw the symbols ``first .. last - 1`` of all images, after all symbols before them.

        Raises:
            NumericalError: when the model returns NaN or infinity.
        """
        assert self._noise is not None
        # How likely the symbols so far are under each set is known only to who has drawn them.
        assert self._stepped.sets == 1 or first in (0, int(self._reached[0]))
        if first:
            # The programs look up the symbol before the first, whoever has drawn it.
            newest = self._stepped.newest[(first - 1) % self.model.grid.channels]
            newest.view(-1, len(self._x)).copy_(self._x[:, first - 1])
        while first < last:
            self._list(first)
            noise = self._noise.held(first)
            stop = min(last, self._listed.stop, first + len(noise))
            # ctypes releases the interpreter's lock during the call, so other threads can run.
            status = self._call(
                self._record.ctypes.data,
                first,
                stop,
                noise.data_ptr(),
                noise.stride(0),
                noise.stride(1),
                torch.get_num_threads(),
                self._reached.ctypes.data,
            )
            if status:
                # Drawn symbols are levels, so the status can only be of numbers.
                check_finite(torch.tensor(torch.nan))
            # A call returns early if it takes long, so that it can be interrupted.
            first = int(self._reached[0])

    def _list(self, index: int) -> Sequence[Program]:
        """List the runs before a range of symbols that contains ``index``.

        Returns:
            All programs that run.
        """
        if index in self._listed:
            return self._programs
        symbols = self.model.grid.symbols
        start = index - index % LISTED_SYMBOLS
        self._listed = range(start, min(start + LISTED_SYMBOLS, symbols))
        runs = ListedRuns(len(self._listed))
        self._stepped.add_runs(runs, np.arange(self._listed.start, self._listed.stop))
        if self._mixing is not None:
            runs.add(self._mixing)
        timetable = runs.timetable()
        self._programs = list(timetable.programs)
        correction = -1
        if self._correction is not None:
            correction = len(self._programs)
            self._programs.append(self._correction)
        facts = []
        for program in self._programs:
            runner = program.runner()
            # A walk that is not compiled is given up before it begins.
            if isinstance(runner, CompiledRunner):
                facts.append(runner.facts())
        self._timetable = (np.array(facts, dtype=np.int64), timetable)
        self._set(
            programs=self._timetable[0].ctypes.data,
            program_count=len(facts),
            starts=timetable.starts.ctypes.data,
            runs=timetable.runs.ctypes.data,
            values=timetable.values.ctypes.data,
            variables=timetable.values.shape[1],
            listed=start,
            correction=correction,
        )
        return self._programs

    def _set_predictor(self, predictor: LinearPredictor) -> None:
        """Describe a predictor, whose prediction the head corrects."""
        like = self._stepped.parameters
        neighbours = np.array(linear_predictor.NEIGHBOURS)
        differences = np.array(linear_predictor.DIFFERENCES)
        self._set(
            coefficients=self._address(predictor.coefficients.to(like.dtype)),
            rest=self._address(predictor.rest.to(like.dtype)),
            rest_size=predictor.rest.shape[1],
            thresholds=self._address(predictor.thresholds.to(like.dtype)),
            thresholds_a_kind=predictor.thresholds.shape[1],
            first_class=self._address(predictor.first_class),
            kinds=self._address(predictor.kinds),
            neighbours=self._address(neighbours),
            neighbour_count=len(neighbours),
            differences=self._address(differences),
            difference_count=len(differences),
            unit_shift=linear_predictor.LOG_UNIT_SHIFT,
        )
        if predictor.hidden:
            inputs = like.new_zeros(len(like), predictor.first.in_features)
            self._set(inputs=self._address(inputs), input_stride=inputs.stride(0))
            self._correction = _correction_program(predictor, inputs, like)

    def _set(self, **fields: float) -> None:
        for name, value in fields.items():
            self._record[name] = value

    def _address(self, memory: torch.Tensor | npt.NDArray[np.generic]) -> int:
        """The address of memory, which is kept as long as this object."""
        if isinstance(memory, torch.Tensor):
            assert memory.stride(-1) == 1
            self._kept.append(memory)
            return memory.data_ptr()
        self._kept.append(memory)
        return memory.ctypes.data


def _is_known(head: Head) -> bool:
    """Whether the kernel makes the tables of a head."""
    # A class derived from one of these may make other tables.
    return type(head) in SOFTMAX_HEADS or type(head) in (OrdinalHead, LogisticMixtureHead)


def _correction_program(
    predictor: LinearPredictor, inputs: torch.Tensor, parameters: torch.Tensor
) -> Program:
    """The predictor's small network as a program, which corrects the parameters in place.

    Args:
        predictor: see :meth:`LinearPredictor.correction`.
        inputs: memory for its inputs, ``[rows, inputs]``.
        parameters: ``[rows, size]``.
    """
    program = Program(len(parameters), (), parameters)
    x = inputs
    for layer in (predictor.first, predictor.second):
        hidden = program.zeros(layer.out_features)
        weights = Matrix(layer.weight.detach().T)
        program.linear(x, weights, hidden, add=layer.bias.detach(), activation="silu")
        x = hidden
    correction = program.zeros(predictor.last.out_features)
    weights = Matrix(predictor.last.weight.detach().T)
    program.linear(x, weights, correction, add=predictor.last.bias.detach())
    program.add(parameters, correction, parameters)
    return program


def _mixing_program(
    head: OrdinalHead, parameters: torch.Tensor, sets: int
) -> tuple[torch.Tensor, Program]:
    """The product of an ordinal head, where the last layer of the model does not take it in.

    Args:
        head: the head, whose parameters the model makes.
        parameters: ``[rows, sets * levels]``.
        sets: see :class:`SteppedSymbols`.

    Returns:
        Memory for the logits, of the shape of ``parameters``, and the program that writes to it.
    """
    # The matrix is symmetric.
    weights = Matrix(head.mix(torch.eye(head.size, dtype=parameters.dtype)))
    logits = torch.zeros_like(parameters)
    program = Program(len(parameters), (), parameters)
    for of_set, out in zip(parameters.chunk(sets, 1), logits.chunk(sets, 1), strict=True):
        program.linear(of_set, weights, out)
    return logits, program


@cache
def _check_layout(library: ctypes.CDLL) -> None:
    """Compare the kernel's record with ours.

    Raises:
        ArtifactError: when they differ, because the kernel would misread ours.
    """
    compare_layouts(library.tessella_walk_layout().decode(), "walk " + fields_of(WALK))
