"""The table ``[adversarial]`` of a recipe: further terms of the loss of a VQGAN."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tessella.errors import ConfigError


@dataclass(frozen=True)
class AdversarialConfig:
    """The further terms of a VQGAN's loss: perceptual and adversarial (Esser et al. 2021)."""

    perceptual: str = ""
    """File of weights of the perceptual distance (see :mod:`tessella.training.perceptual`); empty
    leaves it out."""
    perceptual_weight: float = 1.0
    """Of the perceptual term."""
    weight: float = 0.8
    """Of the adversarial term, times the adaptive weight of equation 7."""
    start: float = 0.5
    """When discriminator and adversarial term begin: a share of the run below 1, else a number of
    steps."""
    layers: int = 3
    """Convolutions of the discriminator that halve sides: 1 judges patches of 16x16 pixels, 2 of
    34x34, 3 of 70x70."""
    hidden: int = 64
    """Channels of its first convolution."""
    tolerance: float = 0.5
    """Largest rise of the validation's mean squared error over the least before, as a share of it.
    A larger one is a takeover by the discriminator, which is undone."""

    def __post_init__(self) -> None:
        for name in ("perceptual_weight", "weight", "start", "tolerance"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(
                    f"adversarial.{name} must be at least 0, got {getattr(self, name)}"
                )
        if self.layers < 1 or self.hidden < 1:
            raise ConfigError(
                "adversarial.layers and adversarial.hidden must be at least 1,"
                f" got {self.layers} and {self.hidden}"
            )
        # Each layer halves the sides: no image is large enough for more.
        if self.layers > 16 or self.hidden > 4096:
            raise ConfigError(
                "adversarial.layers must be at most 16 and adversarial.hidden at most 4096,"
                f" got {self.layers} and {self.hidden}"
            )
