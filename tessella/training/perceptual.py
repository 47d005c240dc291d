"""The perceptual distance LPIPS (Zhang et al. 2018), from a file of weights that the user names.

The file is safetensors with the tensors of two published networks by their published names, 31 in
all:

- ``features.N.weight`` and ``features.N.bias`` of torchvision's VGG16 (its other tensors are left
  out), for N in :data:`CONVOLUTIONS`; ``[width, width before, 3, 3]`` and ``[width]``;
- ``lin0.model.1.weight`` to ``lin4.model.1.weight`` of the file ``vgg.pth`` of LPIPS:
  ``[1, width, 1, 1]``.

Nothing is downloaded. Widths are read from the file, so that a small network in this layout will do
for tests.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from tessella.errors import ConfigError
from tessella.files import read_tensors

STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
CONVOLUTIONS = tuple(number for stage in STAGES for number in stage)
"""Numbers of the convolutions in torchvision's VGG16.

Features are compared after the last one of each stage.
"""

MEAN = (0.485, 0.456, 0.406)
"""Mean colour of the photographs that VGG16 was trained on, on the scale 0..1."""

SPREAD = (0.229, 0.224, 0.225)
"""Standard deviation of their colours."""

SMALLEST = 2 ** (len(STAGES) - 1)
"""Least side of an image in pixels: it is halved between stages."""


class Perceptual(nn.Module):
    """Distance of images in the features of a network trained to recognise photographs.

    ``d(x, y) = sum_s mean_places sum_c w_sc (f_sc(x) - f_sc(y))^2``, where ``f_s`` are features
    after stage s, divided by their length at each place. Grey images are shown as colours; of four
    channels the first three.

    Args:
        path: the file of weights; see the module's text.

    Raises:
        ConfigError: when it lacks tensors, or they are of other shapes.
        ArtifactError: when it cannot be read.
    """

    mean: torch.Tensor
    spread: torch.Tensor

    def __init__(self, path: Path | str) -> None:
        super().__init__()
        # Both networks lie in one file, by their published names.
        tensors = read_tensors(path)
        _refuse_missing(path, tensors)
        channels = 3
        self.stages = nn.ModuleList()
        self.mixtures = nn.ParameterList()
        for stage, numbers in enumerate(STAGES):
            layers: list[nn.Module] = []
            # Between stages the sides are halved.
            if stage:
                layers.append(nn.MaxPool2d(2))
            for number in numbers:
                weight = tensors[f"features.{number}.weight"].float()
                bias = tensors[f"features.{number}.bias"].float()
                width = len(weight)
                _check(path, f"features.{number}.weight", weight, (width, channels, 3, 3))
                _check(path, f"features.{number}.bias", bias, (width,))
                layers.append(_convolution(weight, bias))
                layers.append(nn.ReLU())
                channels = width
            name = f"lin{stage}.model.1.weight"
            _check(path, name, tensors[name], (1, channels, 1, 1))
            self.stages.append(nn.Sequential(*layers))
            self.mixtures.append(tensors[name].float().clone())
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("spread", torch.tensor(SPREAD).view(1, 3, 1, 1))
        # The distance teaches the tokenizer, and is not taught.
        self.requires_grad_(False)

    def forward(self, images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """Distances ``[n]`` of float images ``[n, h, w, c]`` on the scale 0..1.

        Sides are at least 16 pixels.
        """
        features = zip(self._features(images), self._features(others), strict=True)
        distance = images.new_zeros(len(images), dtype=torch.float32)
        for mixture, (one, other) in zip(self.mixtures, features, strict=True):
            difference = (_unit(one) - _unit(other)).square()  # [n, width, h', w']
            distance = distance + (difference * mixture).sum(1).mean((1, 2))
        return distance

    def _features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Features ``[n, width, h', w']`` after each stage."""
        x = images.permute(0, 3, 1, 2)  # [n, c, h, w]
        # Grey, and grey with alpha, become three equal colours; of RGBA the alpha is left out.
        if x.shape[1] < 3:
            x = x[:, :1].expand(-1, 3, -1, -1)
        x = x[:, :3].float()
        x = (x - self.mean) / self.spread
        features: list[torch.Tensor] = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


def _refuse_missing(path: Path | str, tensors: dict[str, torch.Tensor]) -> None:
    """Refuse a file that lacks tensors, and say where they come from."""
    names: list[str] = []
    for number in CONVOLUTIONS:
        names += [f"features.{number}.weight", f"features.{number}.bias"]
    names += [f"lin{stage}.model.1.weight" for stage in range(len(STAGES))]
    missing = [name for name in names if name not in tensors]
    if not missing:
        return
    more = ", ..." if len(missing) > 3 else ""
    raise ConfigError(
        f"{path} lacks {len(missing)} of {len(names)} tensors of LPIPS"
        f" ({', '.join(missing[:3])}{more}); wanted are features.N.weight and .bias of"
        " torchvision's VGG16 and lin0..4.model.1.weight of LPIPS"
    )


def _convolution(weight: torch.Tensor, bias: torch.Tensor) -> nn.Conv2d:
    """A convolution with these weights, without drawing random ones first."""
    conv = nn.utils.skip_init(nn.Conv2d, weight.shape[1], weight.shape[0], 3, padding=1)
    conv.load_state_dict({"weight": weight, "bias": bias})
    return conv


def _unit(features: torch.Tensor) -> torch.Tensor:
    """Features divided by their length at each place, float32."""
    features = features.float()
    # The small number under the root keeps the gradient finite at 0.
    return features / (features.square().sum(1, keepdim=True) + 1e-20).sqrt()


def _check(path: Path | str, name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ConfigError(f"{path}: {name} must be {list(shape)}, got {list(tensor.shape)}")
