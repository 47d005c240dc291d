"""Tokenizers against other libraries: steps of a VQ-VAE, encoding and decoding of a VQGAN.

    PEERS_DIR=... python benchmarks/tokenizers.py [vqvae] [vqgan] [--rounds 5] [--compile] [--bf16]

``vqvae``: a step (forward, backward, Adam) over 128 images of 32x32x3, with 256 channels and 512
codes of 64 numbers. The peer is pythae's VQVAE with moving averages
(github.com/clementchadebec/benchmark_VAE), which takes its encoder and its decoder from outside: it
gets separate nets of our classes, so that both do equal work, in torch's usual memory format and
channels last. ``--compile`` adds both with their encoder and decoder under torch.compile, which
is what ``train.compile`` does; ``--bf16`` adds products in bfloat16, channels last.

``vqgan``: images of 256x256 to 16x16 codes and back, one at a time, random weights, 128 channels
times 1-1-2-2-4. Peers: taming-transformers (github.com/CompVis/taming-transformers) and LlamaGen
(github.com/FoundationVision/LlamaGen).

Peers are checkouts in the folder that PEERS_DIR names; missing ones are left out.
pythae needs pydantic and cloudpickle, taming-transformers needs einops.
"""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from harness import Row, alternate, count_parameters, gauge_other_load, importing, write
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import tessella as ts
from tessella.tokenizers.autoencoder import Decoder, Encoder
from tessella.training.tasks import TokenizerTask

BATCH = 128
HIDDEN = 256
CODES = 512
CODE_DIM = 64
STAGES = 2
BLOCKS = 2
STEP_TARGET = 0.70
"""Share of pythae's seconds that a step of ours may take."""

SIDE = 256
"""Pixels to a side of the VQGAN's images."""
ENCODE_TARGET = 1.2
"""Images a second."""
DECODE_TARGET = 0.75
"""Images a second."""

PEERS = Path(os.environ.get("PEERS_DIR", "peers"))

Work = Callable[[], object]


@dataclass(frozen=True)
class Training:
    """A model, and the function that takes one step of its training."""

    model: nn.Module
    step: Work


@dataclass(frozen=True)
class Autoencoder:
    """A model, and the functions that encode and decode one image with it."""

    model: nn.Module
    encode: Callable[[], torch.Tensor]
    decode: Callable[[], torch.Tensor]


def count_gflop(work: Work) -> float:
    """Operations of the products of one piece of work, in 10^9."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e9


def in_bfloat16(work: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """Wrap work so that its products are in bfloat16, as with ``train.precision=bf16``."""

    def wrapped() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return work()

    return wrapped


def step_of(model: nn.Module, loss: Callable[[], torch.Tensor], fused: bool) -> Work:
    """A function that takes one training step.

    ``fused`` is Adam as our training has it, otherwise it is torch's default.
    """
    optimizer = torch.optim.Adam(model.train().parameters(), lr=2e-4, fused=fused or None)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    return step


# A training step of a VQ-VAE.


def our_vqvae(x: torch.Tensor, compiled: bool = False, bf16: bool = False) -> Training:
    """Our VQ-VAE, training on images ``x`` of ``[batch, height, width, channels]``."""
    model = ts.create_tokenizer(
        "vqvae",
        image_size=(32, 32),
        channels=3,
        codebook_size=CODES,
        hidden=HIDDEN,
        code_dim=CODE_DIM,
        downsample=2**STAGES,
        residual_blocks=BLOCKS,
    )
    if compiled:
        # The parts that train.compile compiles; quantizers stay as they are.
        for net in TokenizerTask(model).networks():
            net.compile()

    def loss() -> torch.Tensor:
        return model(x).losses["loss"]

    if bf16:
        loss = in_bfloat16(loss)
    return Training(model, step_of(model, loss, fused=True))


def pythae_vqvae(
    folder: Path, x: torch.Tensor, last: bool = False, compiled: bool = False, bf16: bool = False
) -> Training:
    """pythae's VQVAE around nets of our classes; ``last`` keeps its channels last in memory."""
    with importing(folder / "src", ["pythae"], ["imageio", "scipy", "scipy.special"]):
        models = importlib.import_module("pythae.models")
        nets = importlib.import_module("pythae.models.nn")
        output = importlib.import_module("pythae.models.base.base_utils").ModelOutput

    # Its base classes exist only once it is imported, so these classes stand in here.
    class PythaeEncoder(nets.BaseEncoder):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = Encoder(3, HIDDEN, CODE_DIM, STAGES, BLOCKS)

        def forward(self, x: torch.Tensor) -> object:
            return output(embedding=self.net(x))

    class PythaeDecoder(nets.BaseDecoder):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = Decoder(3, HIDDEN, CODE_DIM, STAGES, BLOCKS)

        def forward(self, z: torch.Tensor) -> object:
            return output(reconstruction=self.net(z))

    config = models.VQVAEConfig(
        input_dim=(3, 32, 32), latent_dim=CODE_DIM, num_embeddings=CODES, use_ema=True
    )
    layout = torch.contiguous_format
    if last:
        layout = torch.channels_last
    model: nn.Module = models.VQVAE(config, PythaeEncoder(), PythaeDecoder())
    model = model.to(memory_format=layout)  # type: ignore[call-overload]
    images = x.movedim(-1, 1).contiguous(memory_format=layout)
    if compiled:
        for part in (model.encoder, model.decoder):
            part.net.compile()  # type: ignore[union-attr]

    def loss() -> torch.Tensor:
        return model({"data": images}).loss

    if bf16:
        loss = in_bfloat16(loss)
    return Training(model, step_of(model, loss, fused=False))


def create_vqvaes(chosen: argparse.Namespace) -> dict[str, Training]:
    """All ways of training that were asked for and can run here, by name."""
    x = torch.rand(BATCH, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    folder = PEERS / "benchmark_VAE"
    # Every variant of ours has its counterpart of the peer, or none has.
    has_peer = folder.is_dir()

    ways = {"tessella": our_vqvae(x)}
    if has_peer:
        ways["pythae"] = pythae_vqvae(folder, x)
        ways["pythae, channels last"] = pythae_vqvae(folder, x, last=True)
    if chosen.bf16:
        ways["tessella, bf16"] = our_vqvae(x, bf16=True)
        if has_peer:
            ways["pythae, bf16"] = pythae_vqvae(folder, x, last=True, bf16=True)
    if chosen.compile:
        ways["tessella, compiled"] = our_vqvae(x, compiled=True)
        if has_peer:
            ways["pythae, compiled"] = pythae_vqvae(folder, x, last=True, compiled=True)
    return ways


def vqvae(chosen: argparse.Namespace) -> list[Row]:
    """Rows of training steps of a VQ-VAE."""
    ways = create_vqvaes(chosen)
    steps = {}
    counts: dict[str, Row] = {}
    for name, way in ways.items():
        steps[name] = way.step
        counts[name] = {"parameters": count_parameters(way.model)}
        # The counter does not see into compiled code.
        if "compiled" not in name:
            counts[name]["gflop"] = count_gflop(way.step)

    rows = time_in_turn("vqvae step", steps, counts, chosen.rounds, warm=2)
    seconds = {row["name"]: row["seconds"]["median"] for row in rows}
    for row in rows:
        if row["name"].startswith("tessella") and "pythae" in seconds:
            # Against the peer as its users run it, in float32 and not compiled.
            ratio = seconds[row["name"]] / seconds["pythae"]
            row |= {"of_pythae": ratio, "target": STEP_TARGET, "met": ratio <= STEP_TARGET}
            print(f"{row['name']}: {ratio:.2f} of pythae's seconds, target {STEP_TARGET}")
    return rows


# Encoding and decoding of a VQGAN.


def our_vqgan(image: torch.Tensor) -> Autoencoder:
    """Our VQGAN on an image of ``[1, 3, side, side]`` with values in [0, 1]."""
    model = ts.create_tokenizer("vqgan", image_size=(SIDE, SIDE)).eval()
    pixels = (image.movedim(1, -1) * 255).to(torch.uint8)
    symbols = model.encode(pixels)
    return Autoencoder(model, lambda: model.encode(pixels), lambda: model.decode(symbols))


def taming_vqgan(folder: Path, image: torch.Tensor) -> Autoencoder:
    """The parts that taming's VQModel joins; that class itself needs Lightning."""
    with importing(folder, ["taming", "main"]):
        parts = importlib.import_module("taming.modules.diffusionmodules.model")
        quantizer = importlib.import_module("taming.modules.vqvae.quantize").VectorQuantizer2
    sizes = {
        "double_z": False,
        "z_channels": 256,
        "resolution": SIDE,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 128,
        "ch_mult": (1, 1, 2, 2, 4),
        "num_res_blocks": 2,
        "attn_resolutions": [16],
        "dropout": 0.0,
    }
    model = nn.ModuleDict(
        {
            "encoder": parts.Encoder(**sizes),
            "decoder": parts.Decoder(**sizes),
            "to_code": nn.Conv2d(256, 256, 1),
            "from_code": nn.Conv2d(256, 256, 1),
            "quantizer": quantizer(
                1024, 256, 0.25, remap=None, sane_index_shape=True, legacy=False
            ),
        }
    ).eval()

    def encode() -> torch.Tensor:
        # It takes values in [-1, 1] and returns (features, loss, (..., ..., codes)).
        codes = model["quantizer"](model["to_code"](model["encoder"](2 * image - 1)))
        return codes[2][2]

    symbols = encode().reshape(-1)

    def decode() -> torch.Tensor:
        look_up = model["quantizer"].get_codebook_entry
        features = look_up(symbols, (1, 16, 16, 256))  # type: ignore[operator]
        return model["decoder"](model["from_code"](features))

    return Autoencoder(model, encode, decode)


def llamagen_vqgan(folder: Path, image: torch.Tensor) -> Autoencoder:
    """LlamaGen's VQ_16."""
    with importing(folder, ["tokenizer", "utils", "autoregressive"]):
        create = importlib.import_module("tokenizer.tokenizer_image.vq_model").VQ_16
        model = create(codebook_size=16384, codebook_embed_dim=8).eval()

    def encode() -> torch.Tensor:
        return model.encode(2 * image - 1)[2][2]

    symbols = encode()

    def decode() -> torch.Tensor:
        return model.decode_code(symbols, (1, 8, 16, 16))

    return Autoencoder(model, encode, decode)


def create_vqgans(chosen: argparse.Namespace) -> dict[str, Autoencoder]:
    """All VQGANs that were asked for and can run here, by name."""
    # Random weights and pixels: the work does not depend on them.
    image = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    ways = {"tessella": our_vqgan(image)}
    if (PEERS / "taming-transformers").is_dir():
        ways["taming-transformers"] = taming_vqgan(PEERS / "taming-transformers", image)
    if (PEERS / "LlamaGen").is_dir():
        ways["LlamaGen"] = llamagen_vqgan(PEERS / "LlamaGen", image)
    if chosen.bf16:
        for name, way in list(ways.items()):
            encode = in_bfloat16(way.encode)
            decode = in_bfloat16(way.decode)
            ways[f"{name}, bf16"] = Autoencoder(way.model, encode, decode)
    return ways


@torch.no_grad()
def vqgan(chosen: argparse.Namespace) -> list[Row]:
    """Rows of encoding and of decoding with a VQGAN."""
    ways = create_vqgans(chosen)
    encoders = {name: way.encode for name, way in ways.items()}
    decoders = {name: way.decode for name, way in ways.items()}
    rows = []
    for title, work, target in (
        ("vqgan encode", encoders, ENCODE_TARGET),
        ("vqgan decode", decoders, DECODE_TARGET),
    ):
        counts = {}
        for name, function in work.items():
            counts[name] = {
                "parameters": count_parameters(ways[name].model),
                "gflop": count_gflop(function),
            }
        for row in time_in_turn(title, work, counts, chosen.rounds, warm=1):
            row["images_s"] = 1 / row["seconds"]["median"]
            line = f"{title}: {row['name']} {row['images_s']:.2f} images/s"
            if "tessella" in row["name"]:
                row |= {"target": target, "met": row["images_s"] >= target}
                line += f" target {target}"
            rows.append(row)
            print(line)
    return rows


# Both.


def time_in_turn(
    title: str,
    work: dict[str, Callable[[], torch.Tensor]] | dict[str, Work],
    counts: dict[str, Row],
    rounds: int,
    warm: int,
) -> list[Row]:
    """A row for each piece of work: seconds, and what the machine gave beside it.

    Args:
        title: of all the work.
        work: functions to time, by name.
        counts: further figures of each.
        rounds: timed calls of each.
        warm: calls before these.
    """
    other_load = gauge_other_load()
    a = torch.randn(2048, 2048)
    # A product of matrices is timed in turn with the rest, to know how fast the machine was then.
    seconds = alternate({**work, "product": lambda: a @ a}, rounds, warm)
    product = 2 * 2048**3 / seconds.pop("product")["median"] / 1e9
    circumstances = {"product_gflop_s": product, "others": other_load()}

    rows = []
    for name, times in seconds.items():
        row = {"work": title, "name": name, "seconds": times, **counts[name], **circumstances}
        speed = ""
        if "gflop" in row:
            row["gflop_s"] = row["gflop"] / times["median"]
            speed = f"{row['gflop_s']:.0f} GFLOP/s of {product:.0f}"
        rows.append(row)
        print(
            f"{title:14} {name:24} {times['median']:7.3f} s ({times['least']:.3f} to "
            f"{times['greatest']:.3f}) {speed}"
        )
    return rows


def main() -> None:
    """Measure the works that the command line names."""
    works = {"vqvae": vqvae, "vqgan": vqgan}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", nargs="*", help="vqvae, vqgan; both where nothing is named")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--out", default="")
    chosen = parser.parse_args()
    # Not as choices: with nargs="*" argparse would refuse an empty list.
    unknown = set(chosen.work) - set(works)
    if unknown:
        parser.error(f"unknown work {', '.join(sorted(unknown))}. Known: {', '.join(works)}")

    rows = []
    for name in chosen.work or works:
        rows += works[name](chosen)
    print(write("tokenizers", rows, chosen.out))


if __name__ == "__main__":
    main()
