"""Samplers of other libraries, for the benchmark of sampling: each with a few steps as its own
sampler takes them.

A peer is a checkout in the folder that the environment variable PEERS_DIR names, under the name of
its repository:

    pytorch-generative    github.com/EugenHotaj/pytorch-generative
    pixel-cnn-pp          github.com/pclucas14/pixel-cnn-pp
    vq-vae-2-pytorch      github.com/rosinality/vq-vae-2-pytorch
    taming-transformers   github.com/CompVis/taming-transformers
    LlamaGen              github.com/FoundationVision/LlamaGen

It is imported, never changed; what it imports and this work does not use is replaced by a stand-in.
All have random
weights: the work of a step does not depend on them.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from harness import importing
from torch import nn

ABSENT = (
    "torchvision",
    "torchvision.datasets",
    "torchvision.datasets.utils",
    "torchvision.datasets.vision",
    "torchvision.transforms",
    "sklearn",
    "sklearn.datasets",
    "torch.utils.tensorboard",
)


@dataclass
class Peer:
    """A few steps of another library's sampler."""

    name: str
    what: str
    """Its model and what is timed."""
    act: Callable[[], object]
    steps: int
    """Steps that ``act`` takes; a step is a pixel or a code of the whole batch."""
    image_steps: int
    parameters: int


class _Enough(Exception):
    """Stops a sampler."""


def first_steps(run: Callable[[], object], model: nn.Module, count: int) -> Callable[[], None]:
    """A sampler that takes one pass of ``model`` a step, stopped when the pass after ``count``
    would begin."""

    def act() -> None:
        left, forward = [count], model.forward

        def counted(*args: Any, **kwargs: Any) -> Any:
            if not left[0]:
                raise _Enough
            left[0] -= 1
            return forward(*args, **kwargs)

        model.forward = counted
        try:
            with contextlib.suppress(_Enough), torch.no_grad():
                run()
        finally:
            del model.forward

    return act


def _size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def categorical(logits: torch.Tensor) -> torch.Tensor:
    """Draws for pytorch-generative."""
    return torch.distributions.Categorical(logits=logits).sample().float()


def pytorch_generative(
    folder: Path, make: Callable[[Any], nn.Module], what: str, side: int
) -> Callable[[int], Peer]:
    """A model of pytorch-generative, which runs the network on the whole image for every pixel."""
    with importing(folder, ["pytorch_generative"], ABSENT):
        from pytorch_generative import models

        model = make(models).eval()
    with torch.no_grad():
        model(torch.zeros(1, 1, side, side))  # remembers the image's shape

    def peer(batch: int) -> Peer:
        count = 4 if batch == 1 else 1
        act = first_steps(lambda: model.sample(batch), model, count)  # type: ignore[operator]
        if type(model).__name__ in (
            "NADE",
            "MADE",
        ):  # their samplers do not pass through forward: whole images
            act, count = lambda: model.sample(batch), side * side  # type: ignore[assignment,operator]
        return Peer("pytorch-generative", what, act, count, side * side, _size(model))

    return peer


def gated_pixelcnn(folder: Path) -> Callable[[int], Peer]:
    what = "GatedPixelCNN, 10 layers of 128, a pass over the image for every pixel"
    return pytorch_generative(
        folder, lambda m: m.GatedPixelCNN(1, 256, 10, 128, 32, sample_fn=categorical), what, 32
    )


def pixelcnn(folder: Path) -> Callable[[int], Peer]:
    what = "PixelCNN, 15 blocks of 256, a pass over the image for every pixel"
    return pytorch_generative(
        folder, lambda m: m.PixelCNN(1, 256, 15, 128, 32, sample_fn=categorical), what, 32
    )


def fvsbn(folder: Path) -> Callable[[int], Peer]:
    what = "FullyVisibleBeliefNetwork, a pass over the image for every pixel"
    return pytorch_generative(folder, lambda m: m.FullyVisibleBeliefNetwork(784), what, 28)


def nade(folder: Path) -> Callable[[int], Peer]:
    return pytorch_generative(folder, lambda m: m.NADE(784, 500), "NADE of 500, whole images", 28)


def made(folder: Path) -> Callable[[int], Peer]:
    what = "MADE of 2 x 500, a pass over the image for every pixel, whole images"
    return pytorch_generative(folder, lambda m: m.MADE(784, [500, 500]), what, 28)


def pixelcnn_pp(folder: Path) -> Callable[[int], Peer]:
    """pixel-cnn-pp. Its driver reads the command line and trains on import, so that its loop is
    written here anew."""
    with importing(folder, ["utils", "layers", "model"]):
        utils = sys.modules["utils"] = types.ModuleType("utils")
        text = (folder / "utils.py").read_text(encoding="utf-8")
        exec(re.sub(r"\bprint e\b", "print(e)", text), vars(utils))  # one statement is Python 2
        network = (
            importlib.import_module("model")
            .PixelCNN(nr_resnet=5, nr_filters=160, nr_logistic_mix=10)
            .eval()
        )

    def peer(batch: int) -> Peer:
        def run() -> None:
            data = torch.zeros(batch, 3, 32, 32)
            for row in range(32):
                for column in range(32):
                    drawn = utils.sample_from_discretized_mix_logistic(
                        network(data, sample=True), 10
                    )
                    data[:, :, row, column] = drawn[:, :, row, column]

        what = "PixelCNN, 5 blocks of 160 filters, a pass over the image for every pixel"
        return Peer("pixel-cnn-pp", what, first_steps(run, network, 1), 1, 1024, _size(network))

    return peer


def pixelsnail(folder: Path) -> Callable[[int], Peer]:
    """vq-vae-2-pytorch's PixelSNAIL; its script is written for CUDA, so that its loop is written
    here anew."""
    with importing(folder, ["pixelsnail"]):
        model = (
            importlib.import_module("pixelsnail")
            .PixelSNAIL([32, 32], 512, 256, 5, 4, 4, 256)
            .eval()
        )

    def peer(batch: int) -> Peer:
        rows = (0, 8, 16, 24, 31) if batch == 1 else (16,)

        @torch.no_grad()
        def act() -> None:
            symbols, cache = torch.zeros(batch, 32, 32, dtype=torch.int64), {}
            for row in rows:
                out, cache = model(symbols[:, : row + 1], condition=None, cache=cache)
                symbols[:, row, 1] = torch.multinomial(
                    torch.softmax(out[:, :, row, 1], 1), 1
                ).squeeze(-1)

        places = ", ".join(map(str, rows))
        what = (
            "PixelSNAIL, 256 channels, a pass over the rows so far for every code; codes of rows "
            f"{places} timed"
        )
        return Peer("vq-vae-2-pytorch", what, act, len(rows), 1024, _size(model))

    return peer


def mingpt(folder: Path) -> Callable[[int], Peer]:
    """taming-transformers' GPT with cached keys and values."""
    with importing(folder, ["taming"], ["transformers"]):
        module = importlib.import_module("taming.modules.transformer.mingpt")
        model = module.GPT(
            vocab_size=1024, block_size=257, n_layer=12, n_head=12, n_embd=768
        ).eval()

    def peer(batch: int) -> Peer:
        start = torch.zeros(batch, 1, dtype=torch.int64)
        what = "GPT 12 x 768, cached keys and values, whole images"
        return Peer(
            "taming-transformers",
            what,
            lambda: module.sample_with_past(start, model, 256),
            256,
            256,
            _size(model),
        )

    return peer


def llamagen(folder: Path) -> Callable[[int], Peer]:
    """LlamaGen's GPT-B, whose cache is of full length from the first code on: all steps cost the
    same."""
    count = 16
    with importing(folder, ["autoregressive", "utils"]):
        generate = importlib.import_module("autoregressive.models.generate")
        gpt = importlib.import_module("autoregressive.models.gpt")
        sizes = {"block_size": 256, "num_classes": 1000, "cls_token_num": 1, "model_type": "c2i"}
        model = gpt.GPT_B(vocab_size=1024, **sizes).eval()
    if not hasattr(torch.backends.cuda, "sdp_kernel"):
        generate.torch = _with_kernels(torch)

    def peer(batch: int) -> Peer:
        classes = torch.zeros(batch, dtype=torch.int64)

        def run() -> None:
            generate.generate(
                model, classes, 256, temperature=1.0, top_k=0, top_p=1.0, sample_logits=True
            )

        what = "GPT-B (12 x 768), cached keys and values, its first 16 codes"
        return Peer("LlamaGen", what, first_steps(run, model, count), count, 256, _size(model))

    return peer


def _with_kernels(module: Any) -> Any:
    """torch with the context manager that LlamaGen enters around a step and that newer versions
    lack."""
    changed = types.ModuleType("torch")
    vars(changed).update(vars(module))
    cuda = types.SimpleNamespace(sdp_kernel=lambda **kwargs: contextlib.nullcontext())
    vars(changed)["backends"] = types.SimpleNamespace(cuda=cuda)
    return changed


PEERS: dict[str, list[tuple[str, Callable[[Path], Callable[[int], Peer]]]]] = {
    "gated-pixelcnn": [("pytorch-generative", gated_pixelcnn)],
    "pixelcnn++": [("pixel-cnn-pp", pixelcnn_pp)],
    "pixelsnail": [("vq-vae-2-pytorch", pixelsnail)],
    "transformer": [("taming-transformers", mingpt), ("LlamaGen", llamagen)],
    "pixelcnn-large": [("pytorch-generative", pixelcnn)],
    "fvsbn": [("pytorch-generative", fvsbn)],
    "nade": [("pytorch-generative", nade)],
    "made": [("pytorch-generative", made)],
}
"""By work: the checkout, and what makes the peer of it."""


def peers_of(work: str) -> tuple[list[Callable[[int], Peer]], list[str]]:
    """The peers of a work that run here, by batch, and why the others do not. Each is tried
    once."""
    there, missing = [], []
    for name, make in PEERS.get(work, []):
        folder = Path(os.environ.get("PEERS_DIR", "peers")) / name
        if not folder.is_dir():
            missing.append(f"{name}: no checkout under PEERS_DIR")
            continue
        try:
            peer = make(folder)
            peer(1).act()
        except Exception as error:  # noqa: BLE001 - whatever another library raises, ours is still measured
            missing.append(f"{name}: {type(error).__name__}: {error}")
        else:
            there.append(peer)
    return there, missing
