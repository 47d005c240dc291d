"""VQGAN: the function of taming-transformers and LlamaGen from their weights; sizes, words for what
is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tessella.errors import ConfigError
from tessella.files import read_tensors
from tessella.tokenizers import TOKENIZERS, create_tokenizer
from tessella.tokenizers.community_checkpoints import from_llamagen_vq, from_taming
from tessella.tokenizers.construction import construct
from tessella.tokenizers.convnet import DeepBlock, Down, Norm, SpatialAttention, Up
from tessella.tokenizers.vqgan import VQGAN

Tensors = dict[str, torch.Tensor]


def reference(data_dir: Path, name: str) -> tuple[Tensors, Tensors]:
    """Random weights of a tiny model of another project, and what its own code gave for some
    images."""
    path = data_dir.parent / "parity" / f"{name}.safetensors"
    if not path.is_file():
        pytest.skip(f"no file {path} with reference outputs")
    tensors = read_tensors(path)
    parts = [
        {n.removeprefix(p): t for n, t in tensors.items() if n.startswith(p)}
        for p in ("state.", "io.")
    ]
    return parts[0], parts[1]


@pytest.fixture(scope="module")
def taming(data_dir: Path) -> tuple[Tensors, Tensors]:
    return reference(data_dir, "taming_vqgan")


@pytest.fixture(scope="module")
def llamagen(data_dir: Path) -> tuple[Tensors, Tensors]:
    return reference(data_dir, "llamagen_vq")


def images(theirs: torch.Tensor) -> torch.Tensor:
    """``[n, c, h, w]`` in -1..1 as ours: ``[n, h, w, c]`` in 0..1."""
    return (theirs.permute(0, 2, 3, 1) + 1) / 2


@torch.no_grad()
def check(model: VQGAN, io: Tensors) -> None:
    features = model.encode_float(images(io["images"]))
    if "latents" in io:
        torch.testing.assert_close(features, io["latents"].permute(0, 2, 3, 1), rtol=0, atol=1e-4)
    assert torch.equal(model.quantizer.encode(features).squeeze(-1), io["codes"])
    decoded = model.decode_float(model.quantizer.decode(io["codes"].unsqueeze(-1)))
    torch.testing.assert_close(
        2 * decoded - 1, io["decoded"].permute(0, 2, 3, 1), rtol=0, atol=1e-4
    )


def test_codes_and_images_are_those_of_taming(taming: tuple[Tensors, Tensors]) -> None:
    check(from_taming(taming[0], (32, 32)), taming[1])


def test_codes_and_images_are_those_of_llamagen(llamagen: tuple[Tensors, Tensors]) -> None:
    check(from_llamagen_vq(llamagen[0], (32, 32)), llamagen[1])


def test_a_model_of_others_is_rebuilt_from_its_configuration(
    taming: tuple[Tensors, Tensors],
) -> None:
    model = from_taming(taming[0], (32, 32))
    again = create_tokenizer("vqgan", **model.config())
    again.load_state_dict(model.state_dict())
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8))
    assert torch.equal(model.encode(x), again.encode(x))


def test_what_only_training_needs_is_left_out(taming: tuple[Tensors, Tensors]) -> None:
    check(from_taming(taming[0] | {"loss.logvar": torch.zeros(())}, (32, 32)), taming[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.norm_out.bias": None}, r"1 missing \(encoder.norm_out.bias\)"),
        (
            {"decoder.up.0.attn.0.q.weight": torch.ones(2)},
            r"1 unknown \(decoder.up.0.attn.0.q.weight\)",
        ),
        ({"decoder.conv_in.bias": torch.ones(3)}, r"decoder.conv_in.bias makes a tensor \[3\]"),
        ({"quant_conv.weight": None}, "quant_conv.weight.*shows a size, is missing"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    taming: tuple[Tensors, Tensors], change: dict[str, torch.Tensor | None], message: str
) -> None:
    state = {name: tensor for name, tensor in (taming[0] | change).items() if tensor is not None}
    with pytest.raises(ConfigError, match=message):
        from_taming(state)


@pytest.mark.parametrize(
    ("sizes", "millions", "stride"),
    [
        ({}, 72.14, 16),
        ({"codebook_size": 16384}, 76.07, 16),
        (
            {"multipliers": (1, 2, 2, 4), "codebook_size": 16384, "latent": 4, "code_dim": 4},
            67.72,
            8,
        ),
        ({"codebook_size": 16384, "code_dim": 8}, 71.88, 16),
        ({"multipliers": (1, 2, 2, 4), "codebook_size": 16384, "code_dim": 8}, 70.11, 8),
    ],
)
def test_their_sizes_have_the_parameters_they_publish(
    sizes: dict[str, object], millions: float, stride: int
) -> None:
    with torch.device("meta"):
        model = construct("tokenizer", TOKENIZERS, "vqgan", {"quantizer": "vq", **sizes})
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions
    assert model.stride == stride


@pytest.mark.parametrize(
    ("channels", "groups"), [(7, 1), (8, 2), (12, 3), (16, 4), (32, 32), (48, 12), (128, 32)]
)
def test_groups_hold_several_channels_where_there_are_few(channels: int, groups: int) -> None:
    assert Norm(channels).num_groups == groups


def test_going_up_is_a_convolution_over_repeated_pixels() -> None:
    torch.manual_seed(0)
    up, x = Up(3).double(), torch.randn(2, 3, 4, 5).double()
    repeated = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(up(x), up.conv(repeated))


def test_going_down_looks_at_pixels_from_its_own_on() -> None:
    torch.manual_seed(0)
    down, x = Down(3).double(), torch.randn(2, 3, 4, 6).double()
    padded = torch.nn.functional.pad(x, (0, 1, 0, 1))
    expected = torch.nn.functional.conv2d(padded, down.conv.weight, down.conv.bias, stride=2)
    torch.testing.assert_close(down(x), expected)


def test_a_block_without_gradients_is_the_same_function() -> None:
    torch.manual_seed(0)
    net, x = (
        torch.nn.Sequential(DeepBlock(8, 16), SpatialAttention(16)).double(),
        torch.randn(2, 8, 5, 3).double(),
    )
    before = x.clone()
    expected = net(x)
    with torch.no_grad():
        torch.testing.assert_close(net(x), expected)
    assert torch.equal(x, before), "the input stays as it is"


def test_attention_mixes_all_places_by_the_softmax_of_their_products() -> None:
    torch.manual_seed(1)
    attention, x = SpatialAttention(6).double(), torch.randn(1, 6, 2, 3).double()
    query, key, value = attention.project(attention.norm(x)).flatten(2).chunk(3, 1)
    weights = torch.softmax(query.transpose(1, 2) @ key / 6**0.5, dim=2)
    mixed = (value @ weights.transpose(1, 2)).view_as(x)
    torch.testing.assert_close(attention(x), x + attention.merge(mixed))


@pytest.mark.parametrize("quantizer", ["vq", "fsq", "lfq", "residual-vq"])
def test_other_quantizers_fit_in(quantizer: str) -> None:
    options = {"vq": {"cosine": True}, "residual-vq": {"depth": 3}}.get(quantizer, {})
    sizes = {
        "hidden": 8,
        "multipliers": (1, 2),
        "residual_blocks": 1,
        "latent": 8,
        "code_dim": 8,
        "channels": 1,
    }
    model = create_tokenizer(
        "vqgan", image_size=(9, 4), quantizer=quantizer, options=options, codebook_size=256, **sizes
    )
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 9, 4, 1), dtype=np.uint8))
    model.train()(x).losses["loss"].backward()
    assert model.decode(model.eval().encode(x)).shape == x.shape
    assert create_tokenizer("vqgan", **model.config()).grid() == model.grid()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hidden": 0}, "hidden must be an integer in 1..65536, got 0"),
        ({"multipliers": ()}, r"multipliers must be a list of 1 to 13 numbers, got \(\)"),
        ({"multipliers": (1, 0)}, "each of the multipliers must be an integer in 1.*, got 0"),
        ({"residual_blocks": 0}, "residual_blocks must be an integer in 1..1024, got 0"),
    ],
)
def test_layers_of_no_size_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_tokenizer("vqgan", **wrong)


def test_activations_lie_channels_last_on_a_cpu_also_of_one_image() -> None:
    model = create_tokenizer(
        "vqgan", image_size=(8, 8), hidden=8, multipliers=(1, 2), latent=8, code_dim=8
    )
    layouts: list[bool] = []

    def note(_: torch.nn.Module, __: object, x: torch.Tensor) -> None:
        layouts.append(x.is_contiguous(memory_format=torch.channels_last))

    for part in (*model.encoder, *model.decoder):  # type: ignore[misc]
        if not isinstance(part, Down):
            part.register_forward_hook(note)
    model.decode(model.encode(np.zeros((1, 8, 8, 3), np.uint8)))
    assert len(layouts) > 20
    assert all(layouts)
