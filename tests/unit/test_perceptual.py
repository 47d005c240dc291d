"""The perceptual distance: against its formula, and clear words for files that are not its
weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tessella.errors import ArtifactError, ConfigError
from tessella.files import write_tensors
from tessella.training.perceptual import STAGES, Perceptual

WIDTHS = (4, 6, 8, 8, 8)
Tensors = dict[str, torch.Tensor]


def weights() -> Tensors:
    """Random weights of a narrow network in the layout of VGG16 and LPIPS."""
    make, before = torch.Generator().manual_seed(0), 3
    tensors = {}
    for stage, (numbers, width) in enumerate(zip(STAGES, WIDTHS, strict=True)):
        for number in numbers:
            tensors[f"features.{number}.weight"] = torch.randn(
                width, before, 3, 3, generator=make
            ) / (3 * before**0.5)
            tensors[f"features.{number}.bias"] = torch.randn(width, generator=make) / 10
            before = width
        tensors[f"lin{stage}.model.1.weight"] = torch.rand(1, width, 1, 1, generator=make)
    return tensors


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_tensors(tmp_path / "lpips.safetensors", weights() | {"classifier.0.bias": torch.zeros(2)})
    return tmp_path / "lpips.safetensors"


def some(channels: int = 3, seed: int = 0, size: tuple[int, int] = (17, 24)) -> torch.Tensor:
    return torch.rand(2, *size, channels, generator=torch.Generator().manual_seed(seed))


def by_formula(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """LPIPS as its code computes it: on the scale -1..1, with its shift and scale."""
    state = weights()
    shift, scale = (
        torch.tensor(v).view(1, 3, 1, 1) for v in ((-0.03, -0.088, -0.188), (0.458, 0.448, 0.45))
    )
    features = [((2 * x - 1).permute(0, 3, 1, 2) - shift) / scale for x in (one, other)]
    total = torch.zeros(len(one))
    for stage, numbers in enumerate(STAGES):
        features = [F.max_pool2d(x, 2) if stage else x for x in features]
        for number in numbers:
            weight, bias = state[f"features.{number}.weight"], state[f"features.{number}.bias"]
            features = [F.relu(F.conv2d(x, weight, bias, padding=1)) for x in features]
        unit = [x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10) for x in features]
        total += F.conv2d((unit[0] - unit[1]).pow(2), state[f"lin{stage}.model.1.weight"]).mean(
            (1, 2, 3)
        )
    return total


def test_the_distance_is_that_of_lpips(file: Path) -> None:
    one, other = some(), some(seed=1)
    torch.testing.assert_close(
        Perceptual(file)(one, other), by_formula(one, other), rtol=1e-4, atol=1e-6
    )


def test_like_images_are_at_no_distance(file: Path) -> None:
    distance = Perceptual(file)
    assert torch.equal(distance(some(), some()), torch.zeros(2))
    assert (distance(some(), some(seed=1)) > 1e-3).all()


@pytest.mark.parametrize(("channels", "shown"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (4, [0, 1, 2])])
def test_images_of_other_channels_are_shown_as_colours(
    file: Path, channels: int, shown: list[int]
) -> None:
    distance, one, other = Perceptual(file), some(channels), some(channels, 1)
    torch.testing.assert_close(distance(one, other), distance(one[..., shown], other[..., shown]))


def test_gradients_reach_the_images_and_not_the_weights(file: Path) -> None:
    distance, one = Perceptual(file), some().requires_grad_()
    with torch.no_grad():
        for stage in distance.stages:
            stage[-2].bias[
                :
            ] = -100.0  # features of nothing anywhere must not make the gradient infinite
            break
    distance(one, some(seed=1)).sum().backward()
    assert one.grad is not None
    assert one.grad.isfinite().all()
    assert not any(parameter.requires_grad for parameter in distance.parameters())


def test_the_global_generator_is_left_alone(file: Path) -> None:
    before = torch.random.get_rng_state()
    Perceptual(file)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"features.7.bias": None, "lin4.model.1.weight": None},
            r"lacks 2 of 31 .*\(features.7.bias, lin4.model.1",
        ),
        (
            {"features.5.weight": torch.ones(6, 5, 3, 3)},
            r"features.5.weight must be \[6, 4, 3, 3\], got \[6, 5,",
        ),
        (
            {"lin0.model.1.weight": torch.ones(1, 3, 1, 1)},
            r"lin0.model.1.weight must be \[1, 4, 1, 1\]",
        ),
    ],
)
def test_files_of_other_weights_are_refused(
    tmp_path: Path, change: dict[str, torch.Tensor | None], message: str
) -> None:
    tensors = {name: tensor for name, tensor in (weights() | change).items() if tensor is not None}
    write_tensors(tmp_path / "other.safetensors", tensors)
    with pytest.raises(ConfigError, match=message):
        Perceptual(tmp_path / "other.safetensors")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        Perceptual(tmp_path / "none.safetensors")
