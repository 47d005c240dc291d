"""Samplers of other libraries, each with a few steps as its own sampler takes them.

A peer is a checkout in the folder that the environment variable PEERS_DIR names, under the name of
its repository:

    pytorch-generative    github.com/EugenHotaj/pytorch-generative
    pixel-cnn-pp          github.com/pclucas14/pixel-cnn-pp
    vq-vae-2-pytorch      github.com/rosinality/vq-vae-2-pytorch
    taming-transformers   github.com/CompVis/taming-transformers
    LlamaGen              github.com/FoundationVision/LlamaGen

It is imported, never changed; modules that it imports and that this work does not use are replaced
by stand-ins. All have random weights: the work of a step does not depend on them.
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
from typing import Any, TypeAlias

import torch
from harness import count_parameters, importing
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
"""Modules that pytorch-generative imports and that its samplers do not use."""


@dataclass
class Peer:
    """A few steps of another library's sampler."""

    name: str
    what: str
    """Its model and what is timed."""
    draw: Callable[[], object]
    steps: int
    """Steps that ``draw`` takes; a step is a pixel or a code of the whole batch."""
    image_steps: int
    """Steps of a whole image."""
    parameters: int


PeerOfBatch: TypeAlias = Callable[[int], Peer]
"""Makes the peer for a number of images that are drawn at a time."""


class _EnoughSteps(Exception):
    """Stops a sampler."""


def first_steps(sampler: Callable[[], object], model: nn.Module, count: int) -> Callable[[], None]:
    """Cut a sampler off after ``count`` steps.

    Args:
        sampler: draws whole images, with one pass of ``model`` a step.
        model: that it calls.
        count: of steps; it is stopped when the pass after these would begin.
    """

    def draw() -> None:
        forward = model.forward
        passes = 0

        def counted(*args: object, **kwargs: object) -> object:
            nonlocal passes
            if passes == count:
                raise _EnoughSteps
            passes += 1
            return forward(*args, **kwargs)

        # An attribute of the object goes before the method of its class, until it is deleted.
        model.forward = counted
        try:
            with contextlib.suppress(_EnoughSteps), torch.no_grad():
                sampler()
        finally:
            del model.forward

    return draw


def categorical(logits: torch.Tensor) -> torch.Tensor:
    """Draw for pytorch-generative, whose own function draws black and white."""
    return torch.distributions.Categorical(logits=logits).sample().float()


def pytorch_generative(
    folder: Path, make: Callable[[Any], nn.Module], what: str, side: int
) -> PeerOfBatch:
    """A model of pytorch-generative, which runs the network on the whole image for every pixel.

    Args:
        folder: the checkout.
        make: creates the model from the library's module of models.
        what: the model, in words.
        side: of the square image.
    """
    with importing(folder, ["pytorch_generative"], ABSENT):
        from pytorch_generative import models  # type: ignore[import-not-found]

        model = make(models).eval()
    # Its models take the shape of an image that is drawn from the first one they are given.
    with torch.no_grad():
        model(torch.zeros(1, 1, side, side))

    def peer(batch: int) -> Peer:
        def whole_images() -> object:
            return model.sample(batch)  # type: ignore[operator]

        pixels = side * side
        if type(model).__name__ in ("NADE", "MADE"):
            # Their samplers do not pass through forward and cannot be cut off.
            draw: Callable[[], object] = whole_images
            count = pixels
        else:
            count = 4 if batch == 1 else 1
            draw = first_steps(whole_images, model, count)
        return Peer("pytorch-generative", what, draw, count, pixels, count_parameters(model))

    return peer


def gated_pixelcnn(folder: Path) -> PeerOfBatch:
    """pytorch-generative's GatedPixelCNN on 32x32 of 256 levels."""
    what = "GatedPixelCNN, 10 layers of 128, a pass over the image for every pixel"
    return pytorch_generative(
        folder, lambda m: m.GatedPixelCNN(1, 256, 10, 128, 32, sample_fn=categorical), what, 32
    )


def pixelcnn(folder: Path) -> PeerOfBatch:
    """pytorch-generative's PixelCNN on 32x32 of 256 levels."""
    what = "PixelCNN, 15 blocks of 256, a pass over the image for every pixel"
    return pytorch_generative(
        folder, lambda m: m.PixelCNN(1, 256, 15, 128, 32, sample_fn=categorical), what, 32
    )


def fvsbn(folder: Path) -> PeerOfBatch:
    """pytorch-generative's fully visible belief network on 28x28 black and white."""
    what = "FullyVisibleBeliefNetwork, a pass over the image for every pixel"
    return pytorch_generative(folder, lambda m: m.FullyVisibleBeliefNetwork(784), what, 28)


def nade(folder: Path) -> PeerOfBatch:
    """pytorch-generative's NADE on 28x28 black and white."""
    return pytorch_generative(folder, lambda m: m.NADE(784, 500), "NADE of 500, whole images", 28)


def made(folder: Path) -> PeerOfBatch:
    """pytorch-generative's MADE on 28x28 black and white."""
    what = "MADE of 2 x 500, a pass over the image for every pixel, whole images"
    return pytorch_generative(folder, lambda m: m.MADE(784, [500, 500]), what, 28)


def pixelcnn_pp(folder: Path) -> PeerOfBatch:
    """pixel-cnn-pp's PixelCNN.

    Its driver reads the command line and trains on import, so its loop is written here anew.
    """
    with importing(folder, ["utils", "layers", "model"]):
        # One of its statements is Python 2, so this module is run from corrected text.
        utils = types.ModuleType("utils")
        sys.modules["utils"] = utils
        text = (folder / "utils.py").read_text(encoding="utf-8")
        exec(re.sub(r"\bprint e\b", "print(e)", text), vars(utils))
        module = importlib.import_module("model")
        network = module.PixelCNN(nr_resnet=5, nr_filters=160, nr_logistic_mix=10).eval()

    def peer(batch: int) -> Peer:
        def whole_images() -> None:
            data = torch.zeros(batch, 3, 32, 32)
            for row in range(32):
                for column in range(32):
                    # Every pixel is drawn, of which one is kept.
                    parameters = network(data, sample=True)
                    drawn = utils.sample_from_discretized_mix_logistic(parameters, 10)
                    data[:, :, row, column] = drawn[:, :, row, column]

        what = "PixelCNN, 5 blocks of 160 filters, a pass over the image for every pixel"
        draw = first_steps(whole_images, network, 1)
        return Peer("pixel-cnn-pp", what, draw, 1, 1024, count_parameters(network))

    return peer


def pixelsnail(folder: Path) -> PeerOfBatch:
    """vq-vae-2-pytorch's PixelSNAIL.

    Its script is written for CUDA, so its loop is written here anew.
    """
    with importing(folder, ["pixelsnail"]):
        # The sizes of the work of this name in sampling.py, on 32x32 codes of 512.
        module = importlib.import_module("pixelsnail")
        model = module.PixelSNAIL([32, 32], 512, 256, 5, 4, 4, 256).eval()

    def peer(batch: int) -> Peer:
        # A pass takes longer the more rows there are, so codes all over the image are timed; the
        # middle one stands for them where a batch makes each of them slow.
        rows: tuple[int, ...] = (16,)
        if batch == 1:
            rows = (0, 8, 16, 24, 31)

        @torch.no_grad()
        def draw() -> None:
            symbols = torch.zeros(batch, 32, 32, dtype=torch.int64)
            cache: dict[str, torch.Tensor] = {}
            for row in rows:
                out, cache = model(symbols[:, : row + 1], condition=None, cache=cache)
                # out: [batch, levels, rows, 32]
                probabilities = torch.softmax(out[:, :, row, 1], 1)
                symbols[:, row, 1] = torch.multinomial(probabilities, 1).squeeze(-1)

        places = ", ".join(map(str, rows))
        what = (
            "PixelSNAIL, 256 channels, a pass over the rows so far for every code; codes of rows "
            f"{places} timed"
        )
        return Peer("vq-vae-2-pytorch", what, draw, len(rows), 1024, count_parameters(model))

    return peer


def mingpt(folder: Path) -> PeerOfBatch:
    """taming-transformers' GPT with cached keys and values."""
    with importing(folder, ["taming"], ["transformers"]):
        module = importlib.import_module("taming.modules.transformer.mingpt")
        model = module.GPT(
            vocab_size=1024, block_size=257, n_layer=12, n_head=12, n_embd=768
        ).eval()

    def peer(batch: int) -> Peer:
        # The token before the first code, from which 256 codes are drawn.
        start = torch.zeros(batch, 1, dtype=torch.int64)
        what = "GPT 12 x 768, cached keys and values, whole images"

        def draw() -> object:
            return module.sample_with_past(start, model, 256)

        return Peer("taming-transformers", what, draw, 256, 256, count_parameters(model))

    return peer


def llamagen(folder: Path) -> PeerOfBatch:
    """LlamaGen's GPT-B."""
    # Its cache is of full length from the first code on, so all steps cost alike and a few do.
    count = 16
    with importing(folder, ["autoregressive", "utils"]):
        generate = importlib.import_module("autoregressive.models.generate")
        gpt = importlib.import_module("autoregressive.models.gpt")
        sizes = {"block_size": 256, "num_classes": 1000, "cls_token_num": 1, "model_type": "c2i"}
        model = gpt.GPT_B(vocab_size=1024, **sizes).eval()
    if not hasattr(torch.backends.cuda, "sdp_kernel"):
        vars(generate)["torch"] = _with_sdp_kernel(torch)

    def peer(batch: int) -> Peer:
        classes = torch.zeros(batch, dtype=torch.int64)

        def whole_images() -> None:
            generate.generate(
                model, classes, 256, temperature=1.0, top_k=0, top_p=1.0, sample_logits=True
            )

        what = "GPT-B (12 x 768), cached keys and values, its first 16 codes"
        draw = first_steps(whole_images, model, count)
        return Peer("LlamaGen", what, draw, count, 256, count_parameters(model))

    return peer


def _with_sdp_kernel(module: types.ModuleType) -> types.ModuleType:
    """torch with ``sdp_kernel``, which LlamaGen enters around a step and newer versions lack."""
    changed = types.ModuleType("torch")
    vars(changed).update(vars(module))
    cuda = types.SimpleNamespace(sdp_kernel=lambda **kwargs: contextlib.nullcontext())
    vars(changed)["backends"] = types.SimpleNamespace(cuda=cuda)
    return changed


PEERS: dict[str, list[tuple[str, Callable[[Path], PeerOfBatch]]]] = {
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


def find_peers(work: str) -> tuple[list[PeerOfBatch], list[str]]:
    """The peers of a work that run here, and why the others do not; each is tried once."""
    found = []
    missing = []
    for name, make in PEERS.get(work, []):
        folder = Path(os.environ.get("PEERS_DIR", "peers")) / name
        if not folder.is_dir():
            missing.append(f"{name}: no checkout under PEERS_DIR")
            continue
        try:
            peer = make(folder)
            peer(1).draw()
        # Whatever another library raises, ours is still measured.
        except Exception as error:  # noqa: BLE001
            missing.append(f"{name}: {type(error).__name__}: {error}")
        else:
            found.append(peer)
    return found, missing
