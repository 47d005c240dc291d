"""Training a tokenizer against a discriminator (Esser et al. 2021, section 3.1).

A guard keeps the discriminator from taking over.

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

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from tessella import files
from tessella.config import AdversarialConfig, TrainConfig, to_dict
from tessella.distributed import mean_over_processes, process_count
from tessella.errors import ConfigError, TessellaWarning
from tessella.tokenizers.convnet import Norm
from tessella.tokenizers.tokenizer import Tokenizer
from tessella.tokenizers.vqgan import VQGAN
from tessella.training import schedule
from tessella.training.examples import Examples
from tessella.training.perceptual import SMALLEST, Perceptual
from tessella.training.progress import LEVELS_SQUARED, Progress, Rank
from tessella.training.tasks import TokenizerTask, Validation

LARGEST_LAMBDA = 1e4
"""Bound of the adaptive weight, which would grow without end as the discriminator's gradient
vanishes."""

MOST_TAKEOVERS = 4
"""At this takeover the adversarial term is switched off."""

GUARDED, BEFORE_START, TAKEN_OVER = 0, 1, 2
"""Tiers of :class:`~tessella.training.progress.Rank`, best first."""


class Discriminator(nn.Sequential):
    """Judges whether patches of images ``[n, channels, h, w]`` are real.

    It gives scores ``[n, 1, h', w']``, higher for real ones. This is the PatchGAN of Isola et al.
    (2017, appendix 6.1.2), with group instead of batch normalization, so that an image is judged by
    itself.

    Args:
        channels: of the images.
        hidden: channels after the first convolution; doubled by each further one, up to eight times
            as many.
        layers: convolutions that halve the sides, which must be at least ``3 * 2^layers`` pixels.
    """

    def __init__(self, channels: int, hidden: int = 64, layers: int = 3) -> None:
        # Each convolution of stride 2 halves the sides: h, w -> h/2, w/2.
        parts: list[nn.Module] = [nn.Conv2d(channels, hidden, 4, 2, 1), nn.LeakyReLU(0.2)]
        before = hidden
        for layer in range(1, layers + 1):
            width = hidden * min(2**layer, 8)
            # The last of these convolutions keeps the sides, less one pixel.
            stride = 2 if layer < layers else 1
            parts.append(nn.Conv2d(before, width, 4, stride, 1))
            parts.append(Norm(width, swish=False))
            parts.append(nn.LeakyReLU(0.2))
            before = width
        # One score for each patch; the sides lose another pixel.
        super().__init__(*parts, nn.Conv2d(before, 1, 4, 1, 1))
        for part in self:
            if isinstance(part, nn.Conv2d):
                nn.init.normal_(part.weight, 0.0, 0.02)


class Adversaries(nn.Module):
    """A tokenizer, its discriminator, and the memory of the guard between them.

    All of it is in the state: a resumed run goes on as if it had not stopped.

    Args:
        tokenizer: to be trained.
        discriminator: its opponent.
    """

    passes: torch.Tensor
    """Passes of training."""
    played: torch.Tensor
    """Passes with the adversarial term."""
    seconds: torch.Tensor
    """Of training; counted only where the run is limited by minutes."""
    strength: torch.Tensor
    """Factor of the adversarial weight."""
    takeovers: torch.Tensor
    least: torch.Tensor
    """Least mean squared error of a validation so far."""
    put_back: torch.Tensor
    """Whether the other processes have yet to take up the weights that were put back."""

    def __init__(self, tokenizer: VQGAN, discriminator: Discriminator) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.discriminator = discriminator
        self.register_buffer("passes", torch.tensor(0))
        self.register_buffer("played", torch.tensor(0))
        self.register_buffer("seconds", torch.tensor(0.0, dtype=torch.float64))
        self.register_buffer("strength", torch.tensor(1.0))
        self.register_buffer("takeovers", torch.tensor(0))
        self.register_buffer("least", torch.tensor(torch.inf, dtype=torch.float64))
        self.register_buffer("put_back", torch.tensor(False))
        # Not a buffer, as the loop copies those at each step.
        self.good: dict[str, torch.Tensor] = {}
        """Averaged weights and codebook of the last validation that passed the guard."""

    @torch.no_grad()
    def judge(self, averaged: Adversaries, mse: float, tolerance: float) -> Rank:
        """Compare a validation with those before; keep its weights, or put back earlier ones.

        Args:
            averaged: the copy with averaged weights, which was validated; it is put back too.
            mse: its mean squared error.
            tolerance: rise over the least error before, as a share of it, that is allowed.

        Returns:
            The rank of these weights; see :class:`AdversarialTask`.
        """
        playing = int(self.played) > 0
        # Written so that an error that is no number counts as too large.
        acceptable = mse <= (1 + tolerance) * float(self.least)
        if playing and bool(self.strength > 0) and not acceptable:
            self._take_back(averaged, mse)
            # min() in this order gives the bound for an error that is no number.
            return Rank(TAKEN_OVER, min(LEVELS_SQUARED, mse), "the discriminator took over")
        self.least.copy_(torch.minimum(self.least, self.least.new_tensor(mse)))
        self.good = {name: tensor.clone() for name, tensor in averaged.learned().items()}
        if playing:
            return Rank(GUARDED, -float(self.played), "last weights that passed the guard")
        return Rank(BEFORE_START, mse, "least mse before the adversarial term begins")

    def learned(self) -> dict[str, torch.Tensor]:
        """Weights and codebooks of both."""
        tensors: dict[str, torch.Tensor] = {}
        for key, tensor in self.tokenizer.state_dict().items():
            tensors[f"tokenizer.{key}"] = tensor
        for key, tensor in self.discriminator.state_dict().items():
            tensors[f"discriminator.{key}"] = tensor
        return tensors

    @torch.no_grad()
    def synchronize(self) -> None:
        """Share the weights that the first process has put back with all processes."""
        if not bool(self.put_back):
            return
        if process_count() > 1:
            for tensor in self.learned().values():
                dist.broadcast(tensor, 0)
        self.put_back.fill_(False)

    def _take_back(self, averaged: Adversaries, mse: float) -> None:
        """Put back the last good weights and weaken the discriminator."""
        self.takeovers += 1
        # Halved three times, then off: a discriminator that wins every time teaches nothing.
        self.strength.mul_(0.5 if int(self.takeovers) < MOST_TAKEOVERS else 0.0)
        if self.good:
            for part in (self, averaged):
                for name, tensor in part.learned().items():
                    tensor.copy_(self.good[name])
        self.put_back.fill_(bool(self.good))
        weight = "is switched off"
        if self.strength:
            weight = f"is now {float(self.strength):g} of what it was"
        warnings.warn(
            f"the discriminator took over: the mean squared error rose from {float(self.least):.4g}"
            f" to {mse:.4g}. The last good weights are put back, and the adversarial weight"
            f" {weight}",
            TessellaWarning,
            stacklevel=4,
        )

    def _save_to_state_dict(
        self, destination: dict[str, torch.Tensor], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, tensor in self.good.items():
            destination[f"{prefix}good.{name}"] = tensor

    def _load_from_state_dict(
        self, state_dict: dict[str, torch.Tensor], prefix: str, *rest: object
    ) -> None:
        # How many tensors there are depends on the run, so they cannot be buffers to be filled.
        start = f"{prefix}good."
        self.good = {}
        for name in list(state_dict):
            if name.startswith(start):
                self.good[name.removeprefix(start)] = state_dict.pop(name).clone()
        super()._load_from_state_dict(state_dict, prefix, *rest)


class AdversarialTask(TokenizerTask):
    """A VQGAN with a perceptual and an adversarial term.

    The adversarial term and the discriminator begin together, after ``start``. Until then the
    discriminator's loss is 0 times its weights, so that each weight has a gradient at each step, as
    several processes need it.

    The guard looks at each validation. When the mean squared error is more than ``1 + tolerance``
    times the least before, the discriminator has taken over. Then the averaged weights and the
    codebook of the last validation that passed are put back, as the trained and as the averaged
    ones. (The optimizer keeps its averages, which forget in some ten steps.) The adversarial weight
    is halved, and at the fourth takeover it is switched off. A loss that is not finite ends the
    run, as it does elsewhere, before it reaches the weights.

    The error is least before the adversarial term begins, and no sign of what the term gains. So
    validations rank in three tiers: with the term, the later the better; before it, by their error;
    takeovers last. In words: the last weights that passed the guard are kept, and they are ranked
    by their error only as long as there is nothing to guard.

    Args:
        tokenizer: to be trained.
        config: of the terms.
        train: when the run ends, for a start given as a share of it.
        examples: number of training images, for the same.
        size: height and width of the images.

    Raises:
        ConfigError: for another tokenizer than a VQGAN, or images too small for the discriminator
            or the perceptual distance.
        ArtifactError: when the weights of that cannot be read.
    """

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
                'the table [adversarial] is for the tokenizer "vqgan",'
                f" this one is {tokenizer.name!r}"
            )
        if train.compile:
            raise ConfigError(
                "train.compile does not serve adversarial training, which takes a gradient twice:"
                " leave it out"
            )
        _check_size(config, size)
        # The seed of the run decides the discriminator; the global generator is left alone.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(train.seed)
            discriminator = Discriminator(tokenizer.channels, config.hidden, config.layers)
        super().__init__(Adversaries(tokenizer, discriminator))
        self.config = config
        self.train_config = train
        self.examples = examples
        # In a list it is no part of the module: it is neither trained nor saved in checkpoints.
        self._perceptual: list[Perceptual] = []
        if config.perceptual:
            self._perceptual.append(Perceptual(config.perceptual))
        self._last_pass: float | None = None
        """Reading of the clock at the last pass."""

    @property
    def adversaries(self) -> Adversaries:
        """The tokenizer and its discriminator."""
        assert isinstance(self.module, Adversaries)
        return self.module

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None) -> dict[str, torch.Tensor]:
        both = self.adversaries
        both.synchronize()
        playing = self._count()
        # Terms of the tokenizer, then of the perceptual distance, then of the game.
        out = both.tokenizer(x)
        images = x.to(both.tokenizer.last_layer.dtype) / 255  # [b, h, w, c], 0..1
        made = out.reconstruction
        total = out.losses["loss"]
        figures = {**out.losses, **out.stats}
        for distance in self._perceptual:
            figures["perceptual"] = distance.to(x.device)(made, images).mean()
            total = total + self.config.perceptual_weight * figures["perceptual"]
        if playing:
            figures |= self._play(_channels_first(images), _channels_first(made), total)
            fooled = figures["adversarial_weight"] * figures["adversarial"]
            total = total + fooled + figures["discriminator"]
        else:
            # Every weight needs a gradient, or several processes would wait for it.
            weights = torch.stack([p.sum() for p in both.discriminator.parameters()])
            total = total + 0 * weights.sum()
        detached = {name: value.detach() for name, value in figures.items()}
        return detached | {"loss": total}

    def blocks(self) -> list[nn.Module]:
        raise ConfigError(
            "train.sharding=full does not serve adversarial training, whose guard puts whole"
            " weights back: leave it out"
        )

    def validate(
        self, module: nn.Module, examples: Examples, batch: int, steps: int
    ) -> dict[str, float]:
        assert isinstance(module, Adversaries)
        return super().validate(module.tokenizer, examples, batch, steps)

    def judge(self, module: nn.Module, figures: dict[str, float]) -> Validation:
        assert isinstance(module, Adversaries)
        both = self.adversaries
        rank = both.judge(module, figures["mse"], self.config.tolerance)
        guard = {
            "takeovers": float(both.takeovers),
            "adversarial_strength": float(both.strength),
        }
        return Validation(figures | guard, rank)

    def save(self, module: nn.Module, out: Path, figures: dict[str, object]) -> None:
        assert isinstance(module, Adversaries)
        super().save(module.tokenizer, out, figures)

    def describe(self) -> dict[str, object]:
        tokenizer = self.adversaries.tokenizer
        config = to_dict(self.config)
        # The weights may lie elsewhere when the run is resumed; they must be the same ones.
        config["perceptual"] = ""
        if self.config.perceptual:
            config["perceptual"] = files.sha256(self.config.perceptual)
        return {
            "kind": "tokenizer",
            "model": {"name": tokenizer.name} | tokenizer.config(),
            "adversarial": config,
        }

    def summary(self) -> str:
        config = self.config
        begins = f"step {config.start:g}" if config.start >= 1 else f"{config.start:.0%} of the run"
        perceptual = "no perceptual term, as adversarial.perceptual names no file of weights"
        if config.perceptual:
            perceptual = (
                f"perceptual term of weight {config.perceptual_weight:g} ({config.perceptual})"
            )
        return f"adversarial term of weight {config.weight:g} from {begins} on; {perceptual}"

    def _play(
        self, real: torch.Tensor, made: torch.Tensor, others: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Losses of both sides, and the weight of the generator's.

        Args:
            real, made: images ``[b, c, h, w]``, -1..1.
            others: the terms of the loss that the generator's is measured against.
        """
        both = self.adversaries
        discriminator = both.discriminator
        # Detached weights: this loss must not teach the discriminator to be fooled.
        fixed = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
        scores = torch.func.functional_call(discriminator, fixed, (made,))
        adversarial = -scores.float().mean()
        # Equation 7: both gradients at the last layer of the decoder.
        last = both.tokenizer.last_layer
        norm_of_others = _gradient_of_batch(others, last).norm()
        norm = _gradient_of_batch(adversarial, last).norm()
        adaptive = (norm_of_others / (norm + 1e-6)).clamp(0, LARGEST_LAMBDA)
        # One pass over both halves of the batch.
        judged = discriminator(torch.cat([real, made.detach()])).float()
        real_scores, made_scores = judged.chunk(2)
        hinge = F.relu(1 - real_scores).mean() + F.relu(1 + made_scores).mean()
        return {
            "adversarial": adversarial,
            "adversarial_weight": adaptive * self.config.weight * both.strength,
            "discriminator": hinge / 2,
        }

    def _count(self) -> bool:
        """Count a pass. Returns whether the adversarial term is on in it."""
        both = self.adversaries
        now = time.monotonic()
        step = int(both.passes) // self.train_config.accumulate
        # Once begun the term stays on, even if the run is made longer and the share smaller.
        begun = int(both.played) > 0 or self._passed(step) >= self.config.start
        playing = begun and self.config.weight > 0 and bool(both.strength > 0)
        both.passes += 1
        both.played += playing
        if self.train_config.minutes and self._last_pass is not None:
            both.seconds += now - self._last_pass
        self._last_pass = now
        return playing

    def _passed(self, step: int) -> float:
        """How far the run is, in the unit of ``start``: steps, or a share of the run."""
        if self.config.start >= 1:
            return step
        progress = Progress(step=step, seconds=float(self.adversaries.seconds))
        return schedule.limits_of(self.train_config, self.examples).passed(progress)


def _gradient_of_batch(loss: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The gradient of a mean over the whole batch, of which each process holds a part."""
    gradient = torch.autograd.grad(loss, weight, retain_graph=True)[0]
    return mean_over_processes(gradient)


def _check_size(config: AdversarialConfig, size: tuple[int, int]) -> None:
    # Below that, nothing is left of the sides before the last convolution.
    smallest = 3 * 2**config.layers
    needs = f"adversarial.layers={config.layers}"
    if config.perceptual:
        smallest = max(smallest, SMALLEST)
        needs += " and the perceptual term"
    if min(size) < smallest:
        raise ConfigError(
            f"{needs} need images of at least {smallest}x{smallest}, got {size[0]}x{size[1]}:"
            " take fewer layers"
        )


def _channels_first(images: torch.Tensor) -> torch.Tensor:
    """Images ``[n, h, w, c]``, 0..1, as the discriminator takes them: ``[n, c, h, w]``, -1..1."""
    return (2 * images - 1).permute(0, 3, 1, 2)
