"""What every registered tokenizer must do. A new one gets these tests by being registered."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from operator import itemgetter
from typing import Any

import numpy as np
import pytest
import torch

from tessella.errors import ConfigError, InputError
from tessella.grid import Grid
from tessella.tokenizers import (
    TOKENIZERS,
    Tokenizer,
    TokenizerOutput,
    create_tokenizer,
    register_tokenizer,
)
from tessella.tokenizers import tokenizer as tokenizer_module
from tessella.tokenizers.construction import arguments_of
from tessella.tokenizers.identity import IdentityTokenizer
from tessella.tokenizers.tokenizer import as_tuple

TINY: dict[str, dict[str, Any]] = {
    "identity": {"levels": 17},
    "vqvae": {
        "codebook_size": 16,
        "hidden": 16,
        "code_dim": 4,
        "downsample": 4,
        "residual_blocks": 1,
        "beta": 0.5,
    },
}
TINY["patch-vqvae"] = {"codebook_size": 16, "hidden": 16, "patch": 4, "code_dim": 4}
TINY["patch-vqvae"] |= {"encoder_blocks": 1, "decoder_blocks": 2}
TINY["vqgan"] = {"codebook_size": 16, "hidden": 8, "multipliers": (1, 1), "residual_blocks": 1}
TINY["vqgan"] |= {"latent": 4, "code_dim": 4, "options": {"beta": 0.2}}
TINY["vqvae2"] = {
    "codebook_size": 16,
    "hidden": 8,
    "code_dim": 4,
    "downsample": 2,
    "residual_blocks": 1,
}
TINY["multiscale-vqgan"] = {"codebook_size": 16, "hidden": 8, "multipliers": (1, 1)}
TINY["multiscale-vqgan"] |= {"residual_blocks": 1, "code_dim": 4, "scales": (1, 2, 4)}
TINY["multiscale-vqgan"] |= {"blends": 2, "options": {"beta": 0.2}}
TINY["vqvae2"] |= {"residual_hidden": 4, "likelihood": "logistic"}
NAMES = sorted(TOKENIZERS)
SIZES = [(1, 1), (1, 9), (3, 2), (4, 4), (8, 12), (11, 7)]
every = pytest.mark.parametrize("name", NAMES)


def learns(tokenizer: Tokenizer) -> bool:
    return next(tokenizer.parameters(), None) is not None


learned = pytest.mark.parametrize(
    "name", [name for name in NAMES if learns(create_tokenizer(name))]
)


def tiny(name: str, channels: int = 2, **config: Any) -> Tokenizer:
    return create_tokenizer(
        name, **{"image_size": (6, 5), "channels": channels} | TINY.get(name, {}) | config
    ).double()


def some(
    n: int = 5, size: tuple[int, int] = (6, 5), channels: int = 2, seed: int = 0
) -> np.ndarray:
    """Images of smooth blobs, so that neighbouring pixels agree."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(
        0, 256, (n, (size[0] + 3) // 4, (size[1] + 3) // 4, channels), dtype=np.uint8
    )
    return np.ascontiguousarray(coarse.repeat(4, 1).repeat(4, 2)[:, : size[0], : size[1]])


def trained(name: str, steps: int = 3, **config: Any) -> Tokenizer:
    """A tokenizer after a few steps, so that its codes lie among the vectors."""
    tokenizer = tiny(name, **config).train()
    if learns(tokenizer):
        optimizer = torch.optim.SGD(tokenizer.parameters(), lr=0.1)
        for step in range(steps):
            optimizer.zero_grad()
            tokenizer(torch.from_numpy(some(32, seed=step, channels=tokenizer.channels))).losses[
                "loss"
            ].backward()
            optimizer.step()
    return tokenizer.eval()


def same(one: Any, other: Any) -> bool:
    """Whether symbols are the same, of several grids all of them."""
    return all(torch.equal(a, b) for a, b in zip(as_tuple(one), as_tuple(other), strict=True))


def each(symbols: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """A change made to the symbols of each grid."""
    return tuple(map(change, symbols)) if isinstance(symbols, tuple) else change(symbols)


@every
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_images_become_symbols_of_the_grid_and_images_again(name: str, channels: int) -> None:
    tokenizer = tiny(name, channels)
    for size in SIZES:
        images = some(3, size, channels)
        symbols = tokenizer.encode(images)
        for part, grid in zip(as_tuple(symbols), tokenizer.grids(*size), strict=True):
            assert part.dtype == torch.int64
            assert grid.check(part).shape == (3, *grid.shape)
        back = tokenizer.decode(symbols, size)
        assert back.dtype == torch.uint8
        assert back.shape == images.shape
        assert [part.shape for part in as_tuple(tokenizer.encode(back))] == [
            part.shape for part in as_tuple(symbols)
        ]


@every
def test_the_grid_without_a_size_is_that_of_image_size(name: str) -> None:
    tokenizer = tiny(name)
    assert tokenizer.image_size == (6, 5)
    assert tokenizer.grids() == tokenizer.grids(6, 5)
    assert tokenizer.grids(width=9) == tokenizer.grids(6, 9)


@every
def test_decoding_crops_to_the_image(name: str) -> None:
    tokenizer = trained(name)
    symbols = tokenizer.encode(some())
    whole = tokenizer.decode(symbols)
    assert whole.shape == (5, 6, 5, 2)
    assert torch.equal(whole, tokenizer.decode(symbols, (6, 5)))
    other = tokenizer.decode(tokenizer.encode(some(2, (11, 17))))
    grid = tokenizer.grids(11, 17)[-1]
    assert other.shape == (2, grid.height * tokenizer.stride, grid.width * tokenizer.stride, 2)
    with pytest.raises(InputError, match="images of 40x5 have symbols of"):
        tokenizer.decode(symbols, (40, 5))


@every
@pytest.mark.parametrize("size", SIZES)
def test_sides_are_extended_by_their_edges(name: str, size: tuple[int, int]) -> None:
    tokenizer, images = trained(name), some(4, size)
    grid = tokenizer.grids(*size)[-1]
    missing = (grid.height * tokenizer.stride - size[0], grid.width * tokenizer.stride - size[1])
    extended = np.pad(images, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
    symbols = tokenizer.encode(images)
    assert same(symbols, tokenizer.encode(extended))
    assert torch.equal(
        tokenizer.decode(symbols, size),
        tokenizer.decode(symbols, extended.shape[1:3])[:, : size[0], : size[1]],
    )


@every
def test_a_grid_maker_of_several_grids_has_no_single_grid(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tiny(name)
    monkeypatch.setattr(
        type(tokenizer), "grids", lambda self, height=None, width=None: (Grid(1, 1, 1, 2),) * 2
    )
    with pytest.raises(InputError, match="2 grids"):
        tokenizer.grid()


@every
def test_lossless_says_whether_all_images_survive(name: str) -> None:
    tokenizer = tiny(name, channels=1)
    values = np.arange(256, dtype=np.uint8).repeat(64).reshape(256, 8, 8, 1)
    back = tokenizer.decode(tokenizer.encode(values), (8, 8)).numpy()
    assert tokenizer.lossless == np.array_equal(back, values)


@every
def test_an_image_does_not_depend_on_its_batch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, images = trained(name), some(9)
    symbols = tokenizer.encode(images)
    assert len(as_tuple(symbols)[-1].unique()) > 1, "the test needs different symbols"
    decoded = tokenizer.decode(symbols)
    assert same(symbols, tokenizer.encode(images)), "encoding must repeat"
    monkeypatch.setattr(tokenizer_module, "PIXELS_AT_ONCE", 2 * 6 * 5)
    pieces: list[int] = []
    encode = tokenizer._encode
    monkeypatch.setattr(
        tokenizer, "_encode", lambda piece: pieces.append(len(piece)) or encode(piece)
    )
    assert same(symbols, tokenizer.encode(images))
    assert pieces == [2, 2, 2, 2, 1]
    assert torch.equal(decoded, tokenizer.decode(symbols))
    for i in range(9):
        one = slice(i, i + 1)
        assert same(tokenizer.encode(images[one]), each(symbols, itemgetter(one)))


@every
def test_no_images_are_no_symbols(name: str) -> None:
    tokenizer = tiny(name)
    symbols = tokenizer.encode(some(0))
    assert [part.shape for part in as_tuple(symbols)] == [
        (0, *grid.shape) for grid in tokenizer.grids()
    ]
    assert tokenizer.decode(symbols).shape == (0, 6, 5, 2)


@every
def test_tensors_and_arrays_of_any_layout_are_taken(name: str) -> None:
    tokenizer, images = trained(name), some()
    expected = tokenizer.encode(torch.from_numpy(images))
    assert same(expected, tokenizer.encode(images))
    assert same(each(expected, lambda part: part.flip(0)), tokenizer.encode(images[::-1]))
    frozen = images.copy()
    frozen.flags.writeable = False
    assert same(expected, tokenizer.encode(frozen))
    small = each(expected, lambda part: part.numpy().astype(np.uint16))
    assert torch.equal(tokenizer.decode(expected), tokenizer.decode(small))


@every
def test_the_configuration_rebuilds_the_tokenizer(name: str) -> None:
    tokenizer = trained(name)
    config = json.loads(json.dumps(tokenizer.config()))
    assert config == tokenizer.config()
    assert set(config) == {argument.name for argument in arguments_of(type(tokenizer))}
    again = create_tokenizer(name, seed=5, **config).double()
    again.load_state_dict(tokenizer.state_dict())
    images = some(7, seed=3)
    assert same(tokenizer.encode(images), again.encode(images))
    assert torch.equal(
        tokenizer.decode(tokenizer.encode(images)), again.decode(tokenizer.encode(images))
    )
    assert again.config() == config
    assert again.grids() == tokenizer.grids()


@every
def test_float_images_are_refused_with_the_line_that_converts_them(name: str) -> None:
    tokenizer, images = tiny(name), some().astype(np.float32) / 255
    lines = {
        "np.round(images * 255).astype(np.uint8)": images,
        "(images * 255).round().to(torch.uint8)": torch.from_numpy(images),
    }
    for line, given in lines.items():
        with pytest.raises(InputError) as raised:
            tokenizer.encode(given)
        assert line in str(raised.value)
        assert "float32" in str(raised.value)
        # The advice must work.
        converted = eval(line, {"np": np, "torch": torch, "images": given})
        assert same(tokenizer.encode(converted), tokenizer.encode(some()))


@every
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (some(channels=3), "must have 2 channels, got 3 in shape"),
        (some(2, (6, 5), 2).transpose(0, 3, 1, 2), "channels come last"),
        (some()[..., 0], r"images\[..., None\]"),
        (some()[0, 0], r"\[batch, height, width, channels\], got \[5, 2\]"),
        (some().astype(np.int64), r"got torch.int64; if all values are in 0..255"),
        (some() > 100, r"astype\(np.uint8\) \* 255"),
        (some()[:, :0], "at least 1x1"),
        (np.array(["a"]), "must be a uint8 array"),
    ],
)
def test_other_images_are_refused(name: str, given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny(name).encode(given)


@every
def test_other_symbols_are_refused(name: str) -> None:
    tokenizer = tiny(name)
    symbols, levels = tokenizer.encode(some()), tokenizer.grids()[0].levels
    for change in (levels, -levels):
        with pytest.raises(InputError, match=f"0..{levels - 1}"):
            tokenizer.decode(each(symbols, lambda part: part + change))  # noqa: B023
    with pytest.raises(InputError, match="integers"):
        tokenizer.decode(each(symbols, torch.Tensor.double))
    with pytest.raises(InputError, match="shape"):
        tokenizer.decode(each(symbols, lambda part: part.flatten(1)))
    with pytest.raises(InputError, match="shape"):
        tokenizer.decode(each(symbols, lambda part: part.repeat(1, 1, 1, 2)))
    if isinstance(symbols, tuple):
        with pytest.raises(InputError, match="give a tuple of"):
            tokenizer.decode(symbols[0])


def calls(name: str) -> list[Callable[[], object]]:
    tokenizer, images = tiny(name), torch.from_numpy(some())
    passes = [lambda: tokenizer.train()(images)] * 3 if learns(tokenizer) else []
    return [lambda: tiny(name), lambda: tokenizer.decode(tokenizer.encode(images)), *passes]


@every
def test_the_global_generator_is_left_alone(name: str) -> None:
    before = torch.random.get_rng_state()
    for call in calls(name):
        call()
        assert torch.equal(before, torch.random.get_rng_state())


@every
def test_a_seed_makes_one_tokenizer_and_comes_in_eval_mode(name: str) -> None:
    torch.rand(3)  # what was drawn before does not matter
    one, same, other = (
        create_tokenizer(name, seed=seed, **TINY.get(name, {})) for seed in (3, 3, 4)
    )
    assert not one.training
    for key, value in one.state_dict().items():
        assert torch.equal(value, same.state_dict()[key])
    if learns(one):
        assert any(
            not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True)
        )


@every
def test_encoding_neither_learns_nor_changes_the_mode(name: str) -> None:
    tokenizer = trained(name).train()
    next(reversed(list(tokenizer.modules()))).eval()  # parts may be in different modes
    modes = [part.training for part in tokenizer.modules()]
    before = {key: value.clone() for key, value in tokenizer.state_dict().items()}
    symbols = tokenizer.encode(some())
    assert not tokenizer.decode(symbols).is_inference()
    assert not any(part.requires_grad for part in as_tuple(symbols))
    assert modes == [part.training for part in tokenizer.modules()]
    for key, value in tokenizer.state_dict().items():
        assert torch.equal(value, before[key]), key


@every
def test_the_float_halves_have_gradients(name: str) -> None:
    tokenizer = tiny(name)
    images = (torch.from_numpy(some()).double() / 255).requires_grad_()
    features = tokenizer.encode_float(images)
    grid = tokenizer.grids()[-1]
    for part, its in zip(as_tuple(features), tokenizer.grids(), strict=True):
        assert part.shape[:3] == (5, its.height, its.width)
    back = tokenizer.decode_float(features)
    assert back.shape[:3] == (5, grid.height * tokenizer.stride, grid.width * tokenizer.stride)
    back.square().sum().backward()
    assert images.grad is not None
    assert images.grad.abs().min() >= 0
    assert images.grad.abs().sum() > 0


@learned
def test_a_training_pass_gives_losses_and_reaches_every_weight(name: str) -> None:
    tokenizer, images = tiny(name).train(), torch.from_numpy(some())
    out = tokenizer(images)
    assert isinstance(out, TokenizerOutput)
    assert out.reconstruction.shape == images.shape
    for part, grid in zip(as_tuple(out.symbols), tokenizer.grids(), strict=True):
        assert torch.equal(part, grid.check(part))
    truth = (out.reconstruction - images.double() / 255).square().mean()
    torch.testing.assert_close(out.losses["mse"], truth.detach())
    assert all(
        value.dim() == 0 and torch.isfinite(value)
        for value in [*out.losses.values(), *out.stats.values()]
    )
    assert [key for key, value in out.losses.items() if value.requires_grad] == ["loss"]
    out.losses["loss"].backward()
    for key, parameter in tokenizer.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key


@learned
def test_floats_in_0_to_1_train_like_their_uint8_images(name: str) -> None:
    images = torch.from_numpy(some())
    a, b = tiny(name).train()(images), tiny(name).train()(images.double() / 255)
    torch.testing.assert_close(a.losses, b.losses, rtol=0, atol=0)


@learned
def test_evaluating_a_pass_learns_nothing_and_agrees_with_decode(name: str) -> None:
    tokenizer = trained(name)
    before = {key: value.clone() for key, value in tokenizer.state_dict().items()}
    out = tokenizer(torch.from_numpy(some()))
    assert all(torch.equal(value, before[key]) for key, value in tokenizer.state_dict().items())
    assert same(out.symbols, tokenizer.encode(some()))
    rounded = (out.reconstruction.clamp(0, 1) * 255).round().to(torch.uint8)
    assert torch.equal(rounded, tokenizer.decode(out.symbols))


@learned
def test_training_goes_on_from_a_state_as_if_it_had_not_stopped(name: str) -> None:
    images = [torch.from_numpy(some(16, seed=seed)) for seed in range(6)]
    whole, first = tiny(name).train(), tiny(name).train()
    expected = [whole(x).losses["loss"] for x in images][3:]
    for x in images[:3]:
        first(x)
    resumed = tiny(name, seed=9).train()
    resumed.load_state_dict(first.state_dict())
    assert [resumed(x).losses["loss"] for x in images[3:]] == expected


@learned
def test_a_little_training_beats_the_mean_image(name: str) -> None:
    images = torch.from_numpy(some(256, (8, 8), 1))
    tokenizer = create_tokenizer(
        name, **{"image_size": (8, 8), "channels": 1} | TINY.get(name, {})
    ).train()
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=1e-2)
    for step in range(150):
        optimizer.zero_grad()
        tokenizer(images[step % 4 * 64 :][:64]).losses["loss"].backward()
        optimizer.step()
    tokenizer.eval()
    error = (tokenizer.decode(tokenizer.encode(images)).double() - images.double()).square().mean()
    assert error < 0.1 * images.double().var(0, correction=0).mean()


ABSURD = {
    "image_size": [(2**31, 8), (8, 10**9)],
    "channels": [2**31],
    "levels": [10**9],
    "codebook_size": [10**9, 2**31],
    "code_dim": [2**31, 10**12],
    "hidden": [2**31, 65536],
    "downsample": [2**40],
    "residual_blocks": [65537, 2**31],
    "encoder_blocks": [65537, 2**31],
    "decoder_blocks": [65537, 2**31],
    "patch": [512, 2**40],
    "residual_hidden": [2**31, 65536],
    "multipliers": [(1,) * 1000, (2**31,), (65536, 1)],
    "latent": [2**31, 65536],
    "attention": [(7,), (-9,)],
    "groups": [2**31, 0],
    "scales": [(1,) * 1000, (2**31,), (2, 1)],
    "blends": [2**31, 0],
    "code_kernel": [2**31, 2],
}
"""Values of the numbers that tokenizers take, none of which is meant."""


@every
def test_absurd_sizes_are_refused_before_memory_is_taken(name: str) -> None:
    for argument in arguments_of(TOKENIZERS[name]):
        for value in ABSURD.get(argument.name, []):
            with pytest.raises(ConfigError) as raised:
                create_tokenizer(name, **{argument.name: value})
            message = str(raised.value)
            assert argument.name in message or "take fewer channels or blocks" in message


@every
def test_every_number_of_a_tokenizer_has_an_absurd_value_in_this_test(name: str) -> None:
    for argument in arguments_of(TOKENIZERS[name]):
        if isinstance(argument.default, (int, tuple)):
            assert argument.name in ABSURD


@every
def test_a_constructor_takes_at_most_eight_arguments(name: str) -> None:
    assert len(inspect.signature(TOKENIZERS[name]).parameters) <= 8


@every
def test_help_lists_the_arguments_with_their_defaults(name: str) -> None:
    listed = inspect.getdoc(create_tokenizer)
    assert listed is not None
    words = " ".join(listed.split())
    for argument in arguments_of(TOKENIZERS[name]):
        assert str(argument) in words


@every
def test_a_tokenizer_shows_its_sizes_in_one_line(name: str) -> None:
    shown = repr(tiny(name))
    assert "\n" not in shown
    assert "6x5x2 images" in shown


def test_a_tokenizer_from_outside_is_built_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TOKENIZERS, "_entries", dict(TOKENIZERS._entries))

    @register_tokenizer("negative")
    class Negative(IdentityTokenizer):
        def _encode(self, images: torch.Tensor) -> torch.Tensor:
            return self.levels - 1 - super()._encode(images)

        def _decode(self, symbols: torch.Tensor) -> torch.Tensor:
            return super()._decode(self.levels - 1 - symbols)

    built = create_tokenizer("negative", image_size=(2, 2), channels=1)
    assert isinstance(built, Negative)
    assert built.name == "negative"
    assert built.encode(np.zeros((1, 2, 2, 1), np.uint8)).unique().tolist() == [255]


OLD_CONFIGURATIONS: list[tuple[str, dict[str, Any]]] = [
    ("vqvae", {"image_size": [8, 8], "channels": 1, "codebook_size": 64, "hidden": 32}),
    (
        "vqvae",
        {"code_dim": 16, "downsample": 2, "residual_blocks": 1, "beta": 0.25}
        | {"quantizer": "vq-ema", "options": {}, "likelihood": ""},
    ),
    (
        "vqvae2",
        {"image_size": [8, 8], "channels": 1, "codebook_size": 16, "hidden": 8, "code_dim": 4}
        | {"downsample": 2, "residual_blocks": 1, "residual_hidden": 4}
        | {"quantizer": "vq", "options": {"cosine": True}, "likelihood": "mse"},
    ),
    (
        "vqgan",
        {"image_size": [8, 8], "channels": 1, "codebook_size": 16, "hidden": 8}
        | {"multipliers": [1, 2], "residual_blocks": 1, "latent": 4, "code_dim": 4}
        | {"quantizer": "vq-ema", "options": {"beta": 0.2}},
    ),
]


@pytest.mark.parametrize(("name", "config"), OLD_CONFIGURATIONS)
def test_configurations_saved_earlier_are_read_and_written_unchanged(
    name: str, config: dict[str, Any]
) -> None:
    written = create_tokenizer(name, **config).config()
    assert {key: written[key] for key in config} == config


@pytest.mark.parametrize("levels", range(2, 257))
def test_the_identity_keeps_every_symbol_of_any_number_of_levels(levels: int) -> None:
    tokenizer = IdentityTokenizer((levels, 1), 1, levels)
    symbols = torch.arange(levels).view(1, levels, 1, 1)
    images = tokenizer.decode(symbols)
    assert torch.equal(tokenizer.encode(images), symbols)
    assert (int(images.min()), int(images.max())) == (0, 255)
    exact = 255 * np.arange(levels) / (levels - 1)
    assert np.abs(images.flatten().numpy() - exact).max() <= 0.5


@pytest.mark.parametrize("levels", range(2, 257))
def test_the_identity_quantizes_as_documented(levels: int) -> None:
    values = np.arange(256)
    symbols = (
        IdentityTokenizer((256, 1), 1, levels)
        .encode(values.astype(np.uint8).reshape(1, 256, 1, 1))
        .flatten()
    )
    k = levels.bit_length() - 1
    expected = (
        values >> (8 - k)
        if levels == 2**k
        else np.floor(values * (levels - 1) / 255 + 0.5).astype(int)
    )
    assert symbols.tolist() == expected.tolist()


def test_digits_on_their_17_levels_are_unchanged() -> None:
    values = np.round(255 * np.arange(17) / 16).astype(np.uint8).reshape(1, 17, 1, 1)
    tokenizer = IdentityTokenizer((17, 1), 1, levels=17)
    assert tokenizer.encode(values).flatten().tolist() == list(range(17))
    assert np.array_equal(tokenizer.decode(tokenizer.encode(values)).numpy(), values)
    assert not tokenizer.lossless
    assert IdentityTokenizer(levels=256).lossless


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("vqvea", {}, "did you mean 'vqvae'.*identity"),
        ("vqvae", {"hiden": 3}, "'hiden'; did you mean 'hidden'.*codebook_size"),
        ("vqvae", {"hidden": "3"}, "hidden must be of type int, got '3'"),
        ("vqvae", {"hidden": True}, "hidden must be of type int"),
        ("vqvae", {"image_size": 32}, "image_size must be a list"),
        ("vqvae", {"image_size": (0, 3)}, "image_size must be a height and a width"),
        ("vqvae", {"downsample": 3}, "power of two, got 3"),
        ("patch-vqvae", {"patch": 0}, "patch must be an integer in 1..256, got 0"),
        ("patch-vqvae", {"decoder_blocks": -1}, "decoder_blocks must be an integer in 0..1024"),
        ("patch-vqvae", {"downsample": 4}, "'downsample'.*patch"),
        ("vqvae", {"hidden": 0}, "hidden must be an integer in 2..65536, got 0"),
        ("vqvae", {"codebook_size": 1}, "codebook_size must be an integer in 2..16777216, got 1"),
        ("vqvae", {"quantizer": "vqq"}, "unknown quantizer 'vqq'.*vq-ema"),
        ("vqvae", {"beta": -1.0}, "beta must be at least 0"),
        ("identity", {"channels": 5}, "channels must be 1"),
        ("identity", {"levels": 257}, "2..256, got 257"),
    ],
)
def test_wrong_configurations_are_refused(name: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_tokenizer(name, **config)
