"""``next-scale``: one transformer over the codes of all scales (Tian et al. 2024, "VAR").

``log p(x) = sum over scales k of log p(x_k | x_0 .. x_(k-1))``, and the codes of a scale are
independent of each other given those of the coarser scales. So one pass over the network predicts
all codes of a scale, and an image takes as many passes as it has scales. In training and scoring, a
single pass under a blockwise causal mask gives the distributions of all scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
from torch import nn

from tessella.errors import ConfigError
from tessella.grid import Grid
from tessella.heads import Distribution, Head, create_head
from tessella.models.condition import UNCONDITIONAL, Cond, Condition, Conditioning
from tessella.models.density_model import (
    PASS_VALUES,
    PIXEL_VALUES,
    DensityModel,
    check_finite,
)
from tessella.models.hierarchy import Hierarchy, unpack
from tessella.nn.scale_layers import ScaleNetwork
from tessella.nn.stepping.state import State


@dataclass
class ScaleState(State):
    """The parameters of all codes of a scale, which one pass gives."""

    parameters: torch.Tensor
    """``[batch, symbols, size]``."""


class ScalePrior(DensityModel):
    """The model of one scale given the coarser ones, as :class:`NextScale` makes it.

    It is an ordinary density model, conditioned on the codes of the coarser scales as a grid of one
    row. Its network is shared with the models of the other scales.

    Args:
        grid, head, conditioning: see :class:`DensityModel`.
        network: of all scales.
        coarser: grids of the coarser scales, coarse to fine.
    """

    name = "scale"
    takes_codes = True
    sees_all_coarser = True
    symbols_independent = True

    def __init__(
        self,
        grid: Grid,
        head: Head,
        conditioning: Conditioning,
        network: ScaleNetwork,
        coarser: Sequence[Grid],
    ) -> None:
        super().__init__(grid, head, conditioning)
        self.network = network
        self.coarser = tuple(coarser)

    def forward(self, x: torch.Tensor, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
        known: tuple[torch.Tensor, ...] = ()
        if condition.codes is not None:
            known = unpack(condition.codes.flatten(1), self.coarser)
        parameters = self.network(known, condition.labels, self.recomputed)[-1]
        # Without classes, the coarsest scale is the same in all images.
        return parameters.expand(x.shape[0], *parameters.shape[1:])

    @torch.no_grad()
    def init_state(self, batch: int, cond: Cond = None) -> ScaleState:
        condition = self.condition(cond, batch)
        # No code of this scale depends on another, so any will do.
        x = torch.zeros(batch, *self.grid.shape, dtype=torch.int64, device=self.device)
        return ScaleState(self(x, condition).flatten(1, 3).clone())

    def step(self, previous: torch.Tensor, index: int, state: State) -> tuple[torch.Tensor, State]:
        assert isinstance(state, ScaleState)
        return state.parameters[:, index], state

    def last_layers(self) -> Sequence[nn.Module]:
        return [self.network.output]

    def sizes(self) -> dict[str, object]:
        return {}

    def receptive_field(self) -> torch.Tensor:
        return torch.zeros(self.grid.symbols, self.grid.symbols, dtype=torch.bool)


class NextScale(Hierarchy):
    """``next-scale``: a transformer that predicts all codes of a scale from the coarser scales.

    The codes of every scale are vectors which are enlarged to the finest grid, blended with their
    convolution, and summed. What they sum up to, averaged over areas to the size of the next scale,
    is the input of that scale's places, which attend to all places of their own and of the coarser
    scales. In contrast to VAR, the vectors and convolutions are learned with the transformer, so
    that they need not be those of the tokenizer, and the class is added to the tokens.

    Args:
        grids: one for each scale, coarse to fine, such as a ``multiscale-vqgan`` has them: at least
            two, with one channel and equally many levels, none smaller than the one before it.
        head: name of the head: ``categorical``, or another of single codes without sizes.
        classes: number of classes to condition on; 0 for none.
        layers: number of blocks.
        width: length of the tokens.
        heads: number of attention heads; a divisor of ``width``.
        feedforward: hidden width of the feed-forward parts; 0 means 8/3 of ``width``, rounded up to
            a multiple of 64.
        embedding: length of the vectors of codes that are summed.
        dropout: dropout rate of the tokens, and of the output of each part.

    Raises:
        ConfigError: for grids or sizes that do not fit.

    >>> import tessella as ts
    >>> grids = (ts.Grid(1, 1, 1, 4), ts.Grid(2, 2, 1, 4))
    >>> prior = ts.create_prior("next-scale", grids, layers=1, width=8, heads=2)
    >>> x = (torch.zeros(3, 1, 1, 1, dtype=torch.int64), torch.zeros(3, 2, 2, 1, dtype=torch.int64))
    >>> prior.log_prob(x).shape, prior.symbols
    (torch.Size([3]), 5)
    """

    name = "next-scale"

    def __init__(
        self,
        grids: Sequence[Grid],
        head: str = "categorical",
        classes: int = 0,
        layers: int = 4,
        width: int = 64,
        heads: int = 4,
        feedforward: int = 0,
        embedding: int = 32,
        dropout: float = 0.0,
    ) -> None:
        # Not that of a hierarchy, whose models have weights of their own.
        nn.Module.__init__(self)
        check_scales(grids)
        self._sizes: dict[str, object] = {
            "layers": layers,
            "width": width,
            "heads": heads,
            "feedforward": feedforward,
            "embedding": embedding,
            "dropout": dropout,
        }
        built = [create_head(head, grid) for grid in grids]
        if built[0].joint:
            raise ConfigError(
                f"next-scale takes a head of single codes, not {head!r}: take 'categorical'"
            )
        self.network = ScaleNetwork(
            grids,
            built[0].bias(),
            classes,
            layers,
            width,
            heads,
            feedforward,
            embedding,
            dropout,
        )
        models: list[DensityModel] = []
        for scale, grid in enumerate(grids):
            coarser = grids[:scale]
            conditioning = Conditioning(classes, packed_grid(coarser))
            models.append(ScalePrior(grid, built[scale], conditioning, self.network, coarser))
        # A tuple, since modules in it are not registered: the network is saved once.
        self.priors = tuple(models)

    def train(self, mode: bool = True) -> NextScale:
        super().train(mode)
        # They are not registered, so torch does not find them.
        for prior in self.priors:
            prior.train(mode)
        return self

    def distributions(
        self, x: Sequence[torch.Tensor], labels: torch.Tensor | None
    ) -> list[Distribution]:
        """The distributions of the symbols of each scale given the coarser ones, in one pass.

        Args:
            x, labels: see :meth:`Hierarchy.training_nats`.
        """
        # The finest codes are no input of anything.
        parameters = self.network(tuple(x[:-1]), labels, self.priors[0].recomputed)
        found = []
        for prior, part, symbols in zip(self.priors, parameters, x, strict=True):
            # Without classes, the coarsest scale is the same in all images.
            found.append(prior.head(part.expand(len(symbols), *part.shape[1:])))
        return found

    def training_nats(
        self, x: Sequence[torch.Tensor], labels: torch.Tensor | None
    ) -> list[torch.Tensor]:
        nats = []
        for symbols, distribution in zip(x, self.distributions(x, labels), strict=True):
            nats.append(-distribution.log_prob(symbols).flatten(1).sum(1))
        return nats

    def log_probs(self, x: object, cond: Cond = None) -> list[torch.Tensor]:
        for prior in self.priors:
            prior.check_eval_mode()
        symbols = self.check(x)
        labels = self.condition(cond, len(symbols[0])).labels
        scores: list[list[torch.Tensor]] = [[] for _ in self.priors]
        for start in range(0, max(1, len(symbols[0])), self._images_at_once()):
            here = slice(start, start + self._images_at_once())
            parts = [part[here].to(self.device) for part in symbols]
            distributions = self.distributions(parts, None if labels is None else labels[here])
            for level, distribution in enumerate(distributions):
                nats = distribution.log_prob(parts[level]).flatten(1).sum(1)
                check_finite(nats)
                scores[level].append(nats)
        return [torch.cat(of_level) for of_level in scores]

    def _images_at_once(self) -> int:
        """Images that are scored in one pass, to limit memory."""
        values = max(PIXEL_VALUES, self.priors[0].head.size)
        return max(1, PASS_VALUES // (self.symbols * values))

    def networks(self) -> list[nn.Module]:
        return [self.network]

    def hidden_matrices(self) -> list[nn.Parameter]:
        return self.priors[0].hidden_matrices()

    def parameter_count(self) -> int:
        return self.priors[0].parameter_count()

    @property
    def family_names(self) -> tuple[str, ...]:
        return (self.name,)

    def config(self) -> dict[str, object]:
        return {
            "name": self.name,
            "grids": [asdict(grid) for grid in self.grids],
            "head": self.priors[0].head.config(),
            "classes": self.classes,
            "null_class": self.null_class,
            "sizes": dict(self._sizes),
        }


def packed_grid(grids: Sequence[Grid]) -> Grid | None:
    """The codes of several grids as a grid of one row; None for no grids."""
    if not grids:
        return None
    return Grid(1, sum(grid.symbols for grid in grids), 1, grids[0].levels)


def check_scales(grids: Sequence[Grid]) -> None:
    """Refuse grids that are no scales of one code.

    Raises:
        ConfigError: saying what they must be, and what models them otherwise.
    """
    if len(grids) < 2:
        raise ConfigError(
            "next-scale models codes of several scales, and there is one grid: train a"
            " multiscale-vqgan, or take another model, such as transformer"
        )
    if any(grid.channels != 1 or grid.levels != grids[0].levels for grid in grids):
        listed = ", ".join(str(grid) for grid in grids)
        raise ConfigError(
            "next-scale needs grids of one channel and equally many levels, such as those of a"
            f" multiscale-vqgan, got {listed}"
        )
    for coarse, fine in pairwise(grids):
        if fine.height < coarse.height or fine.width < coarse.width:
            raise ConfigError(
                f"next-scale needs grids from coarse to fine, got {coarse} before {fine}"
            )
