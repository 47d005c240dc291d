"""The promises of every quantizer."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from tessella.contracts.contract import Contract, Options, require, require_close
from tessella.tokenizers.quantizers import Quantizer, create_quantizer, quantizer_arguments

DIM = 6
"""Length of the vectors."""


@dataclass(frozen=True)
class QuantizerCase:
    """A quantizer and its options.

    Args:
        name: registered name.
        options: arguments that differ from the defaults.
    """

    name: str
    options: Options = field(default_factory=dict)

    def build(self) -> Quantizer:
        """A fresh quantizer in training mode, the same each time."""
        options: Options = {}
        # The levels of a lattice, such as FSQ, determine its dimension.
        if "dim" in quantizer_arguments(self.name):
            options["dim"] = DIM
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            return create_quantizer(self.name, **{**options, **self.options}).train()

    def trained(self) -> Quantizer:
        """The quantizer after some batches, in evaluation mode."""
        quantizer = self.build()
        parameters = list(quantizer.parameters())
        optimizer = None
        # Codebooks that follow moving averages have nothing to optimize.
        if parameters:
            optimizer = torch.optim.Adam(parameters, lr=0.01)
        # Three batches: seeding, a first update, and one more with codes in use.
        for seed in range(3):
            z = random_vectors(quantizer, 300, seed=seed)
            out = quantizer(z)
            loss = (out.z - z).square().mean()
            for term in out.losses.values():
                loss = loss + term
            if optimizer is not None:
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        return quantizer.eval()


def random_vectors(quantizer: Quantizer, *shape: int, seed: int = 0) -> torch.Tensor:
    """Normal vectors ``[*shape, dim]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, quantizer.dim, generator=generator)


def symbols_have_their_shape(case: QuantizerCase) -> None:
    """Quantize vectors in batches of several shapes."""
    quantizer = case.trained()
    # A vector alone, without any batch dimension, is the last.
    for shape in ((40,), (2, 30), (2, 5, 6), (1,), ()):
        z = random_vectors(quantizer, *shape)
        # [*shape, dim] -> [*shape, depth]
        symbols = quantizer.encode(z)
        wanted = (*shape, quantizer.depth)
        require(
            symbols.shape == wanted and symbols.dtype == torch.int64,
            f"encode gives {symbols.dtype} {list(symbols.shape)}, right is int64 {list(wanted)}",
        )
        require(
            symbols.min() >= 0 and symbols.max() < quantizer.levels,
            f"symbols lie in {int(symbols.min())}..{int(symbols.max())}, "
            f"allowed are 0..{quantizer.levels - 1}",
        )
        decoded = quantizer.decode(symbols)
        require(
            decoded.shape == z.shape,
            f"decode gives {list(decoded.shape)}, right is {list(z.shape)}",
        )


def a_call_gives_the_codes(case: QuantizerCase) -> None:
    """Compare a call in evaluation mode with encode and decode."""
    quantizer = case.trained()
    z = random_vectors(quantizer, 50)
    out = quantizer(z)
    # Exactly: a prior learns the codes of encode, and the decoder learned the values of calls.
    require(torch.equal(out.symbols, quantizer.encode(z)), "a call and encode give other symbols")
    require_close(out.z, quantizer.decode(out.symbols), 0.0, "values of a call, and of decode")


def evaluation_learns_nothing(case: QuantizerCase) -> None:
    """Encode, decode and call in evaluation mode; compare the state before and after."""
    quantizer = case.trained()
    # Buffers too: usage counts and moving averages must stand still.
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    z = random_vectors(quantizer, 50, seed=7)
    quantizer(z)
    quantizer.decode(quantizer.encode(z))
    for name, value in quantizer.state_dict().items():
        require(torch.equal(before[name], value), f"{name} changed in evaluation mode")


def the_state_is_all_there_is(case: QuantizerCase) -> None:
    """Move the state to a fresh quantizer and encode the same vectors."""
    quantizer = case.trained()
    # Anything kept outside the state, such as a flag that seeding is done, would be missing.
    again = case.build()
    again.load_state_dict(quantizer.state_dict())
    again.eval()
    z = random_vectors(quantizer, 80, seed=3)
    symbols = quantizer.encode(z)
    require(torch.equal(again.encode(z), symbols), "another quantizer of the same state differs")
    require_close(again.decode(symbols), quantizer.decode(symbols), 0.0, "decoded vectors")


def a_gradient_passes(case: QuantizerCase) -> None:
    """Take the gradient of the quantized vectors with respect to the vectors."""
    quantizer = case.trained().train()
    # Rounding has no gradient: it passes straight through, or by a relaxation.
    z = random_vectors(quantizer, 60, seed=5).requires_grad_()
    (gradient,) = torch.autograd.grad(quantizer(z).z.square().sum(), z)
    require(gradient.isfinite().all(), "the gradient is not finite")
    require(gradient.abs().sum() > 0, "no gradient reaches the encoder")


def odd_batches_do_no_harm(case: QuantizerCase) -> None:
    """Train on batches that are empty, constant, huge or not a number, then on a good one."""
    bad_batches = {
        "an empty batch": lambda q: torch.zeros(0, q.dim),
        "a constant batch": lambda q: torch.ones(40, q.dim),
        "a batch whose squares overflow": lambda q: 1e19 * random_vectors(q, 40),
        "a batch that is not a number": lambda q: torch.full((40, q.dim), float("nan")),
    }
    for described, make in bad_batches.items():
        # As the very first batch, which may seed the codebook, and later on.
        for quantizer in (case.build(), case.trained().train()):
            quantizer(make(quantizer))
            out = quantizer(random_vectors(quantizer, 64, seed=2))
            require(out.z.isfinite().all(), f"after {described}, values are not finite")
            for name, value in quantizer.state_dict().items():
                finite = not value.is_floating_point() or bool(value.isfinite().all())
                require(finite, f"after {described}, {name} is not finite")


CONTRACTS: tuple[Contract[QuantizerCase], ...] = (
    Contract("symbols have their shape and range", symbols_have_their_shape),
    Contract("a call gives the codes of encode", a_call_gives_the_codes),
    Contract("evaluation learns nothing", evaluation_learns_nothing),
    Contract("the state is all there is", the_state_is_all_there_is),
    Contract("a gradient passes to the encoder", a_gradient_passes),
    Contract("odd batches do no harm", odd_batches_do_no_harm),
)
