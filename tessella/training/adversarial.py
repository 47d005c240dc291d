"""Training a tokenizer against a discriminator (Esser et al. 2021, section 3.1), and a guard
against losing to it.

The loop knows one module, one loss and one backward pass. So tokenizer and discriminator are one
module, and the loss of images ``x`` and reconstructions ``y`` is::

    L_tokenizer + w_p L_perceptual + lambda w L_G + L_D
    L_G = -mean D(y)    L_D = (mean max(0, 1 - D(x)) + mean max(0, 1 + D(y))) / 2

where ``L_G`` sees the discriminator's weights detached, and ``L_D`` the reconstructions: each side
gets the gradient of its own game. ``lambda`` is the adaptive weight of equation 7: the norm of the
gradient of the terms before it over that of ``L_G``, at the last layer of the decoder.
"""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from tessella import files
from tessella.config import AdversarialConfig, TrainConfig, to_dict
from tessella.distributed import processes
from tessella.errors import ConfigError, TessellaWarning
from tessella.tokenizers.convnet import Norm
from tessella.tokenizers.tokenizer import Tokenizer
from tessella.tokenizers.vqgan import VQGAN
from tessella.training.examples import Examples
from tessella.training.loop import passed
from tessella.training.perceptual import SMALLEST, Perceptual
from tessella.training.run_directory import Progress
from tessella.training.tasks import TokenizerTask

LARGEST_LAMBDA = 1e4
"""The adaptive weight is cut off here, as it is where the discriminator's gradient vanishes."""

TAKEOVERS = 4
"""Takeovers after which the adversarial term is switched off."""

WHITE = 255.0**2
"""Mean squared error between black and white."""


class Discriminator(nn.Sequential):
    """Whether patches of images ``[n, channels, h, w]`` are real: scores ``[n, 1, h', w']``, higher
    for real ones.

    The PatchGAN of Isola et al. (2017, appendix 6.1.2), with group instead of batch normalization,
    so that an image is judged by itself.

    Args:
        channels: of the images.
        hidden: channels after the first convolution; doubled by each further one, up to eight times
            as many.
        layers: convolutions that halve the sides, which must be at least ``3 * 2^layers`` pixels.
    """

    def __init__(self, channels: int, hidden: int = 64, layers: int = 3) -> None:
        parts: list[nn.Module] = [nn.Conv2d(channels, hidden, 4, 2, 1), nn.LeakyReLU(0.2)]
        before = hidden
        for layer in range(1, layers + 1):
            width = hidden * min(2**layer, 8)
            parts += [
                nn.Conv2d(before, width, 4, 2 if layer < layers else 1, 1),
                Norm(width, swish=False),
            ]
            parts += [nn.LeakyReLU(0.2)]
            before = width
        super().__init__(*parts, nn.Conv2d(before, 1, 4, 1, 1))
        for part in self:
            if isinstance(part, nn.Conv2d):
                nn.init.normal_(part.weight, 0.0, 0.02)


class Adversaries(nn.Module):
    """A tokenizer, its discriminator, and what the guard between them remembers.

    All of it is in the state: a resumed run goes on as if it had not stopped.

    Args:
        tokenizer: what is trained.
        discriminator: its opponent.
    """

    def __init__(self, tokenizer: VQGAN, discriminator: Discriminator) -> None:
        super().__init__()
        self.tokenizer, self.discriminator = tokenizer, discriminator
        self.passes: torch.Tensor
        self.played: torch.Tensor
        self.seconds: torch.Tensor
        self.strength: torch.Tensor
        self.takeovers: torch.Tensor
        self.least: torch.Tensor
        self.put_back: torch.Tensor
        self.register_buffer("passes", torch.tensor(0))  # passes of training
        self.register_buffer("played", torch.tensor(0))  # those with the adversarial term
        self.register_buffer(
            "seconds", torch.tensor(0.0, dtype=torch.float64)
        )  # of training; counted if it matters
        self.register_buffer("strength", torch.tensor(1.0))  # factor of the adversarial weight
        self.register_buffer("takeovers", torch.tensor(0))
        self.register_buffer(
            "least", torch.tensor(torch.inf, dtype=torch.float64)
        )  # validation's mean squared error
        self.register_buffer(
            "put_back", torch.tensor(False)
        )  # the other processes have yet to follow
        self.good: dict[str, torch.Tensor] = {}
        """Averaged weights and codebook of the last validation that the guard was content with; not
        a buffer, as those are copied at each step."""

    @torch.no_grad()
    def judge(self, averaged: Adversaries, mse: float, tolerance: float) -> float:
        """Compare a validation with those before; keep or put back the state.

        Args:
            averaged: the copy with averaged weights, which was validated; it is put back too.
            mse: its mean squared error.
            tolerance: rise over the least error before, as a share of it, that is allowed.

        Returns:
            The precedence of these weights; see :class:`AdversarialTask`.
        """
        if (
            int(self.played)
            and bool(self.strength > 0)
            and not mse <= (1 + tolerance) * float(self.least)
        ):
            self._take_back(averaged, mse)
            return 2 + min(1.0, mse / WHITE)
        self.least.copy_(torch.minimum(self.least, self.least.new_tensor(mse)))
        self.good = {name: tensor.clone() for name, tensor in averaged.learnt().items()}
        return 1 / (1 + int(self.played)) if int(self.played) else 1 + mse / WHITE

    def learnt(self) -> dict[str, torch.Tensor]:
        """Weights and codebooks, of both."""
        parts = (("tokenizer", self.tokenizer), ("discriminator", self.discriminator))
        return {
            f"{name}.{key}": tensor
            for name, part in parts
            for key, tensor in part.state_dict().items()
        }

    @torch.no_grad()
    def follow(self) -> None:
        """Have the state of the first process, which put back an earlier one, in all processes."""
        if bool(self.put_back):
            if processes() > 1:
                for tensor in self.learnt().values():
                    dist.broadcast(tensor, 0)
            self.put_back.fill_(False)

    def _take_back(self, averaged: Adversaries, mse: float) -> None:
        self.takeovers += 1
        self.strength.mul_(0.5 if int(self.takeovers) < TAKEOVERS else 0.0)
        for part in (self, averaged) if self.good else ():
            for name, tensor in part.learnt().items():
                tensor.copy_(self.good[name])
        self.put_back.fill_(bool(self.good))
        weight = (
            f"is now {float(self.strength):g} of what it was"
            if self.strength
            else "is switched off"
        )
        warnings.warn(
            f"the discriminator took over: the mean squared error rose from {float(self.least):.4g} to {mse:.4g}. "
            f"The last good weights are put back, and the adversarial weight {weight}",
            TessellaWarning,
            stacklevel=4,
        )

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination |= {f"{prefix}good.{name}": tensor for name, tensor in self.good.items()}

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        start = f"{prefix}good."
        names = [name for name in state_dict if name.startswith(start)]
        self.good = {name.removeprefix(start): state_dict.pop(name).clone() for name in names}
        super()._load_from_state_dict(state_dict, prefix, *rest)


class AdversarialTask(TokenizerTask):
    """A VQGAN with a perceptual and an adversarial term.

    The adversarial term and the discriminator begin together, after ``start``; until then the
    discriminator's loss is 0 times its weights, so that each weight has a gradient at each step, as
    several processes need it.

    The guard looks at each validation. When the mean squared error is more than ``1 + tolerance``
    times the least before, the discriminator has taken over: the averaged weights and the codebook
    of the last validation it was content with are put back, as the trained and as the averaged ones
    (the optimizer keeps its averages, which forget in some ten steps), and the adversarial weight
    is halved, the fourth time switched off. A loss that is not finite ends the run, as it does
    elsewhere, before it reaches the weights.

    The error is least before the adversarial term begins, and no sign of what it gains. So weights
    are kept by ``precedence``, least first: ``1 + mse / 255^2`` before,
    ``1 / (1 + passes with the term)`` afterwards, and ``2 + mse / 255^2`` at a takeover. In words:
    the last weights with which the guard was content, and by their error only as long as there is
    nothing to guard.

    Args:
        tokenizer: what is trained.
        config: of the terms.
        train: when the run ends, for a start given as a share of it.
        examples: number of training images, for the same.
        size: height and width of the images.

    Raises:
        ConfigError: for another tokenizer than a VQGAN, or images too small for the discriminator
            or the perceptual distance.
        ArtifactError: when the weights of that cannot be read.
    """

    metric = "precedence"

    def __init__(
        self,
        tokenizer: Tokenizer,
        config: AdversarialConfig,
        train: TrainConfig,
        examples: int,
        size: tuple[int, int],
    ) -> None:
        if not isinstance(tokenizer, VQGAN):
            raise ConfigError(
                f'the table [adversarial] is for the tokenizer "vqgan", this one is {tokenizer.name!r}'
            )
        if train.compile:
            raise ConfigError(
                "train.compile does not serve adversarial training, which takes a gradient twice: leave it out"
            )
        smallest = max(3 * 2**config.layers, SMALLEST if config.perceptual else 1)
        if min(size) < smallest:
            raise ConfigError(
                f"adversarial.layers={config.layers}{' and the perceptual term' if config.perceptual else ''} need "
                f"images of at least {smallest}x{smallest}, got {size[0]}x{size[1]}: take fewer layers"
            )
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(train.seed)
            discriminator = Discriminator(tokenizer.channels, config.hidden, config.layers)
        super().__init__(Adversaries(tokenizer, discriminator))
        self.config, self.train_config, self.examples = config, train, examples
        self.perceptual: Perceptual | None
        # Kept out of the module tree: it is neither trained nor saved in checkpoints.
        self.__dict__["perceptual"] = Perceptual(config.perceptual) if config.perceptual else None
        self._seen: float | None = None

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None) -> dict[str, torch.Tensor]:
        adversaries = self._adversaries()
        adversaries.follow()
        playing = self._count()
        out = adversaries.tokenizer(x)
        images, made = x.to(adversaries.tokenizer.last_layer.dtype) / 255, out.reconstruction
        total, figures = out.losses["loss"], {**out.losses, **out.stats}
        if self.perceptual is not None:
            figures["perceptual"] = self.perceptual.to(x.device)(made, images).mean()
            total = total + self.config.perceptual_weight * figures["perceptual"]
        if playing:
            figures |= self._play(_as_input(images), _as_input(made), total)
            total = (
                total
                + figures["adversarial_weight"] * figures["adversarial"]
                + figures["discriminator"]
            )
        else:
            total = (
                total
                + 0 * torch.stack([p.sum() for p in adversaries.discriminator.parameters()]).sum()
            )
        return {name: value.detach() for name, value in figures.items()} | {"loss": total}

    def _play(
        self, real: torch.Tensor, made: torch.Tensor, others: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Both sides' losses and the weight of the generator's, which is measured against the
        ``others``."""
        adversaries = self._adversaries()
        discriminator, last = adversaries.discriminator, adversaries.tokenizer.last_layer
        fixed = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
        adversarial = -torch.func.functional_call(discriminator, fixed, (made,)).float().mean()
        norms = [
            torch.autograd.grad(loss, last, retain_graph=True)[0].norm()
            for loss in (others, adversarial)
        ]
        adaptive = (norms[0] / (norms[1] + 1e-6)).clamp(0, LARGEST_LAMBDA)
        of_real, of_made = discriminator(torch.cat([real, made.detach()])).float().chunk(2)
        return {
            "adversarial": adversarial,
            "adversarial_weight": adaptive * self.config.weight * adversaries.strength,
            "discriminator": (F.relu(1 - of_real).mean() + F.relu(1 + of_made).mean()) / 2,
        }

    def _count(self) -> bool:
        """Count a pass. Whether the adversarial term is on in it."""
        adversaries, train, now = self._adversaries(), self.train_config, time.monotonic()
        step = int(adversaries.passes) // train.accumulate
        share = passed(
            train, Progress(step=step, seconds=float(adversaries.seconds)), self.examples
        )
        begun = (
            int(adversaries.played) > 0
            or (step if self.config.start >= 1 else share) >= self.config.start
        )
        playing = begun and self.config.weight > 0 and bool(adversaries.strength > 0)
        adversaries.passes += 1
        adversaries.played += playing
        if train.minutes and self._seen is not None:
            adversaries.seconds += now - self._seen
        self._seen = now
        return playing

    def validate(self, module: nn.Module, examples: Examples, batch: int) -> dict[str, float]:
        assert isinstance(module, Adversaries)
        figures, own = super().validate(module.tokenizer, examples, batch), self._adversaries()
        figures["precedence"] = own.judge(module, figures["mse"], self.config.tolerance)
        return figures | {
            "takeovers": float(own.takeovers),
            "adversarial_strength": float(own.strength),
        }

    def save(self, module: nn.Module, out: Path, figures: dict[str, Any]) -> None:
        assert isinstance(module, Adversaries)
        super().save(module.tokenizer, out, figures)

    def describe(self) -> dict[str, Any]:
        tokenizer, config = self._adversaries().tokenizer, to_dict(self.config)
        config["perceptual"] = (
            files.sha256(self.config.perceptual) if self.config.perceptual else ""
        )
        return {
            "kind": "tokenizer",
            "model": {"name": tokenizer.name} | tokenizer.config(),
            "adversarial": config,
        }

    def about(self) -> str:
        """One line on the terms of the loss."""
        config = self.config
        begins = f"step {config.start:g}" if config.start >= 1 else f"{config.start:.0%} of the run"
        perceptual = f"perceptual term of weight {config.perceptual_weight:g} ({config.perceptual})"
        if not config.perceptual:
            perceptual = "no perceptual term, as adversarial.perceptual names no file of weights"
        return f"adversarial term of weight {config.weight:g} from {begins} on; {perceptual}"

    def _adversaries(self) -> Adversaries:
        assert isinstance(self.module, Adversaries)
        return self.module


def _as_input(images: torch.Tensor) -> torch.Tensor:
    """Images ``[n, h, w, c]`` on the scale 0..1 as the discriminator takes them: channels first,
    -1..1."""
    return (2 * images - 1).permute(0, 3, 1, 2)
