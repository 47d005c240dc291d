"""Checkpoints of other projects: their own codes, images and logits from their weights.

Sizes of the reference models are read from the files, so files of other sizes can take their place.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import tessella as ts
from tessella.errors import ConfigError, InputError
from tessella.exchange.checkpoints import Facts, flattened
from tessella.exchange.importing import convert
from tessella.files import read_tensors
from tessella.tokenizers.reconstructing import ReconstructingTokenizer

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
Tensors = dict[str, torch.Tensor]

TOKENIZERS = {
    "taming-vqgan": "taming_vqgan",
    "llamagen-vq": "llamagen_vq",
    "diffusers-vqmodel": "diffusers_vqmodel",
    "vq-vae-2-pytorch": "rosinality_vqvae2",
    "var-vqvae": "var_vqvae",
}
"""The files with reference outputs of tokenizers."""


@dataclass(frozen=True)
class Reference:
    """Random weights of a model of another project, and what its own code gave.

    Args:
        state: the weights, by the names there.
        io: inputs and outputs.
        facts: its configuration.
    """

    state: Tensors
    io: Tensors
    facts: Facts


def reference(data_dir: Path, name: str) -> Reference:
    path = data_dir.parent / "parity" / f"{name}.safetensors"
    if not path.is_file():
        pytest.skip(f"no file {path} with reference outputs")
    with safe_open(path, framework="pt") as file:
        facts = flattened(json.loads(file.metadata()["config"]))
    parts: dict[str, Tensors] = {"state": {}, "io": {}}
    for key, tensor in read_tensors(path).items():
        part, _, rest = key.partition(".")
        parts[part][rest] = tensor
    return Reference(parts["state"], parts["io"], facts)


def channels_last(theirs: torch.Tensor) -> torch.Tensor:
    return theirs.permute(0, 2, 3, 1)


def their_codes(io: Tensors) -> list[torch.Tensor]:
    """The codes of every grid, coarse to fine, ``[n, codes]`` each."""
    if "codes" in io:
        found = [io["codes"]]
    elif "top" in io:
        found = [io["top"], io["bottom"]]
    else:
        count = sum(name.startswith("codes_") for name in io)
        found = [io[f"codes_{scale}"] for scale in range(count)]
    return [part.flatten(1) for part in found]


@torch.no_grad()
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_codes_and_images_are_theirs(data_dir: Path, kind: str) -> None:
    given = reference(data_dir, TOKENIZERS[kind])
    model = convert(kind, given.state, given.facts)
    assert isinstance(model, ReconstructingTokenizer)
    images = (channels_last(given.io["images"]) + 1) / 2
    symbols: Any = model.quantize(images).symbols
    parts = symbols if isinstance(symbols, tuple) else (symbols,)
    for ours, theirs in zip(parts, their_codes(given.io), strict=True):
        assert torch.equal(ours.flatten(1), theirs)
    if "latents" in given.io:
        features = model.encode_float(images)
        theirs = channels_last(given.io["latents"])
        torch.testing.assert_close(features, theirs, rtol=0, atol=1e-4)
    decoded = 2 * model.decode_float(model.look_up(symbols)) - 1
    theirs = channels_last(given.io["decoded"])
    # VAR clamps its images itself.
    limit = float(theirs.abs().max()) if kind == "var-vqvae" else float("inf")
    torch.testing.assert_close(decoded.clamp(-limit, limit), theirs, rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llamagen-gpt", "taming-gpt"])
def test_logits_are_theirs_at_once_and_step_by_step(data_dir: Path, kind: str) -> None:
    given = reference(data_dir, kind.replace("-", "_"))
    tokens = given.io["tokens"]
    logits = given.io["logits"]
    facts = dict(given.facts)
    if kind == "taming-gpt":
        # The first token is the condition; the last logits predict what comes after the image.
        labels, tokens = tokens[:, 0], tokens[:, 1:]
        logits = logits[:, : tokens.shape[1]]
        facts |= {"n_classes": given.state["tok_emb.weight"].shape[0]}
    else:
        labels = given.io["classes"]
    side = round(tokens.shape[1] ** 0.5)
    model = convert(kind, given.state, {**facts, "grid": [side, side]})
    assert isinstance(model, ts.DensityModel)
    x = tokens.view(-1, *model.grid.shape)
    at_once = model(x, model.condition(labels, len(x))).flatten(1, 3)
    torch.testing.assert_close(at_once, logits, rtol=0, atol=1e-4)
    walk, previous = model.init_state(len(tokens), labels), tokens[:, 0]
    for index in range(model.grid.symbols):
        stepped, walk = model.step(previous, index, walk)
        torch.testing.assert_close(stepped, logits[:, index], rtol=0, atol=1e-4)
        previous = tokens[:, index]


def test_an_unconditional_model_starts_with_a_code(data_dir: Path) -> None:
    given = reference(data_dir, "taming_gpt")
    facts = {**given.facts, "grid": [2, 3], "sos_token": 5}
    alone = convert("taming-gpt", given.state, facts)
    classes = convert("taming-gpt", given.state, {**facts, "n_classes": 9})
    assert isinstance(alone, ts.DensityModel)
    assert isinstance(classes, ts.DensityModel)
    x = torch.zeros(1, 2, 3, 1, dtype=torch.int64)
    assert torch.equal(alone.log_prob(x), classes.log_prob(x, torch.tensor([5])))
    with pytest.raises(InputError, match="give cond"):
        classes.log_prob(x)


@torch.no_grad()
@pytest.mark.parametrize("name", ["colour", "grey"])
def test_likelihoods_are_those_of_pixel_cnn_pp(name: str) -> None:
    tensors = read_tensors(GOLDEN / f"pixel_cnn_pp_{name}.safetensors")
    state = {
        key.removeprefix("state."): value
        for key, value in tensors.items()
        if key.startswith("state.")
    }
    x = channels_last(tensors["io.x"]).long()
    model = convert("pixel-cnn-pp", state, {"image_size": list(x.shape[1:3])})
    assert isinstance(model, ts.DensityModel)
    nats = model.log_prob(x)
    # Their loss approximates tiny bins, and these are hundreds of pixels.
    torch.testing.assert_close(nats, -tensors["io.nll_sum_per_image"], rtol=0, atol=5e-3)
    assert ts.replay(model, ts.sample(model, n=1, seed=3), seed=3).gap.max() < 1e-3
    # Their parameters, channel by channel, against ours, kind by kind; the sets are the same.
    ours = model(x).flatten(1).sort().values
    theirs = tensors["io.params"].flatten(1).sort().values
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_names_that_newer_versions_of_torch_give_are_read() -> None:
    tensors = read_tensors(GOLDEN / "pixel_cnn_pp_grey.safetensors")
    older: Tensors = {}
    newer: Tensors = {}
    for key, value in tensors.items():
        if key.startswith("state."):
            name = key.removeprefix("state.")
            older[name] = value
            name = name.replace("weight_g", "parametrizations.weight.original0")
            newer[name.replace("weight_v", "parametrizations.weight.original1")] = value
    one = convert("pixel-cnn-pp", older, {"image_size": 8})
    other = convert("pixel-cnn-pp", newer, {"image_size": 8})
    assert newer.keys() != older.keys()
    for ours, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


CHANGES: list[tuple[str, dict[str, torch.Tensor | None], str]] = [
    ("taming-vqgan", {"encoder.norm_out.bias": None}, r"1 missing \(encoder.norm_out.bias\)"),
    (
        "taming-vqgan",
        {"decoder.up.0.attn.0.q.weight": torch.ones(2)},
        r"1 unknown \(decoder.up.0.attn.0.q.weight\)",
    ),
    ("taming-vqgan", {"decoder.conv_in.bias": torch.ones(3)}, r"makes a tensor \[3\], but"),
    ("taming-vqgan", {"quant_conv.weight": None}, "quant_conv.weight, which shows a size"),
    ("taming-vqgan", {"quantize.used": torch.ones(2)}, r"1 unknown \(quantize.used\)"),
    ("taming-vqgan", {"quant_conv.bias": torch.ones(16, dtype=torch.uint8)}, "quant_conv.bias is"),
    ("taming-vqgan", {"quantize.embedding.weight": torch.ones(())}, "must have 2 dimensions"),
    ("llamagen-vq", {"extra": torch.ones(2)}, r"1 unknown \(extra\)"),
    ("diffusers-vqmodel", {"encoder.conv_norm_out.bias": None}, "1 missing .encoder.conv_norm_out"),
    ("var-vqvae", {"quantize.quant_resi.qresi_ls.1.bias": None}, "1 missing .quantize.quant_resi"),
    ("vq-vae-2-pytorch", {"quantize_t.embed": None}, "quantize_t.embed, which shows a size"),
    ("vq-vae-2-pytorch", {"extra": torch.zeros(1)}, "1 unknown .extra"),
]


@pytest.mark.parametrize(("kind", "change", "message"), CHANGES)
def test_tensors_that_do_not_fit_are_named(
    data_dir: Path, kind: str, change: dict[str, torch.Tensor | None], message: str
) -> None:
    given = reference(data_dir, TOKENIZERS[kind])
    changed = {**given.state, **change}
    state = {name: tensor for name, tensor in changed.items() if tensor is not None}
    with pytest.raises(ConfigError, match=message):
        convert(kind, state, given.facts)


def test_what_only_training_needs_is_left_out(data_dir: Path) -> None:
    given = reference(data_dir, "taming_vqgan")
    plain = convert("taming-vqgan", given.state)
    more = convert("taming-vqgan", {**given.state, "loss.logvar": torch.zeros(())})
    for one, other in zip(plain.parameters(), more.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_transformer_that_looks_ahead_is_refused(data_dir: Path) -> None:
    given = reference(data_dir, "taming_gpt")
    mask = given.state["blocks.1.attn.mask"].clone()
    mask[..., 0, 1] = 1
    with pytest.raises(ConfigError, match=r"blocks\.1\.attn\.mask lets places look ahead"):
        convert("taming-gpt", {**given.state, "blocks.1.attn.mask": mask}, given.facts)


@pytest.mark.parametrize(
    ("kind", "facts", "message"),
    [
        ("diffusers-vqmodel", {"norm_type": "spatial"}, "norm_type must be 'group'"),
        ("var-vqvae", {"v_patch_nums": "many"}, "v_patch_nums must be a list"),
        ("var-vqvae", {"using_znorm": True}, "using_znorm must be False"),
        ("llamagen-vq", {"codebook_l2_norm": 3}, "codebook_l2_norm must be true or false"),
        ("taming-vqgan", {"resolution": -1}, "resolution must be an integer of at least 1"),
    ],
)
def test_facts_that_cannot_be_are_refused(
    data_dir: Path, kind: str, facts: Facts, message: str
) -> None:
    given = reference(data_dir, TOKENIZERS[kind])
    with pytest.raises(ConfigError, match=message):
        convert(kind, given.state, {**given.facts, **facts})


def test_an_unknown_kind_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="did you mean 'taming-vqgan'"):
        convert("taming-vqgen", {})
