"""Tokenizers against other libraries', in turn: training steps of a VQ-VAE, and encoding and
decoding of a VQGAN.

    PEERS_DIR=... python benchmarks/tokenizers.py [vqvae] [vqgan] [--rounds 5] [--compile] [--bf16]

``vqvae``: a step (forward, backward, Adam) over 128 images of 32x32x3, with 256 channels and 512
codes of 64 numbers. The peer is pythae's VQVAE with moving averages
(github.com/clementchadebec/benchmark_VAE), which takes its encoder and its decoder from outside: it
gets nets of its own of our classes, so that both do the same work, in torch's usual memory format
and channels last. ``--compile`` adds both with their encoder and decoder under torch.compile, which
is what ``train.compile`` does; ``--bf16`` adds products in bfloat16, channels last.

``vqgan``: images of 256x256 to 16x16 codes and back, one at a time, random weights, 128 channels
times 1-1-2-2-4.
Peers: taming-transformers (github.com/CompVis/taming-transformers) and LlamaGen
(github.com/FoundationVision/LlamaGen).

Peers are checkouts in the folder that PEERS_DIR names; those that are not there are left out.
pythae needs pydantic and cloudpickle.
"""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import alternate, importing, others, write
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import tessella as ts
from tessella.tokenizers.autoencoder import Decoder, Encoder
from tessella.training.tasks import TokenizerTask

BATCH, HIDDEN, CODES, CODE_DIM, STAGES, BLOCKS = 128, 256, 512, 64, 2, 2
STEP_TARGET = 0.70
"""Of pythae's seconds."""
SIDE, ENCODE_TARGET, DECODE_TARGET = 256, 1.2, 0.75
PEERS = Path(os.environ.get("PEERS_DIR", "peers"))

Act = Callable[[], object]


def size(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def gflop(act: Act) -> float:
    """Products of one piece of work, in 10^9 operations."""
    with FlopCounterMode(display=False) as counter:
        act()
    return counter.get_total_flops() / 1e9


def half(act: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """The same with products in bfloat16, as ``train.precision=bf16`` has them."""

    def in_half() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return act()

    return in_half


def step_of(model: nn.Module, loss: Callable[[], torch.Tensor], fused: bool) -> Act:
    """One training step; ``fused`` is Adam as our training has it, otherwise as torch makes it."""
    optimizer = torch.optim.Adam(model.train().parameters(), lr=2e-4, fused=fused or None)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    return step


# ---- a training step of a VQ-VAE
# -------------------------------------------------------------------------------------


def our_vqvae(x: torch.Tensor, compiled: bool = False, bf16: bool = False) -> tuple[nn.Module, Act]:
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
        for net in TokenizerTask(model).networks():
            net.compile()

    def loss() -> torch.Tensor:
        return model(x).losses["loss"]

    return model, step_of(model, half(loss) if bf16 else loss, fused=True)


def pythae(
    folder: Path, x: torch.Tensor, last: bool = False, compiled: bool = False, bf16: bool = False
) -> tuple[nn.Module, Act]:
    """pythae's VQVAE around nets of our classes."""
    with importing(folder / "src", ["pythae"], ["imageio", "scipy", "scipy.special"]):
        models = importlib.import_module("pythae.models")
        nets = importlib.import_module("pythae.models.nn")
        output = importlib.import_module("pythae.models.base.base_utils").ModelOutput

    class Encoding(nets.BaseEncoder):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = Encoder(3, HIDDEN, CODE_DIM, STAGES, BLOCKS)

        def forward(self, x: torch.Tensor) -> Any:
            return output(embedding=self.net(x))

    class Decoding(nets.BaseDecoder):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = Decoder(3, HIDDEN, CODE_DIM, STAGES, BLOCKS)

        def forward(self, z: torch.Tensor) -> Any:
            return output(reconstruction=self.net(z))

    config = models.VQVAEConfig(
        input_dim=(3, 32, 32), latent_dim=CODE_DIM, num_embeddings=CODES, use_ema=True
    )
    model: nn.Module = models.VQVAE(config, Encoding(), Decoding())
    layout = torch.channels_last if last else torch.contiguous_format
    model = model.to(memory_format=layout)  # type: ignore[call-overload]
    images = x.movedim(-1, 1).contiguous(memory_format=layout)
    if compiled:
        for part in (model.encoder, model.decoder):
            part.net.compile()  # type: ignore[operator,union-attr]

    def loss() -> torch.Tensor:
        return model({"data": images}).loss

    return model, step_of(model, half(loss) if bf16 else loss, fused=False)


def vqvae(options: argparse.Namespace) -> list[dict[str, Any]]:
    x = torch.rand(BATCH, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    made = {"tessella": our_vqvae(x)}
    folder = PEERS / "benchmark_VAE"
    if folder.is_dir():
        made["pythae"] = pythae(folder, x)
        made["pythae, channels last"] = pythae(folder, x, last=True)
    if options.bf16:
        made["tessella, bf16"] = our_vqvae(x, bf16=True)
        if folder.is_dir():
            made["pythae, bf16"] = pythae(folder, x, last=True, bf16=True)
    if options.compile:
        made["tessella, compiled"] = our_vqvae(x, compiled=True)
        if folder.is_dir():
            made["pythae, compiled"] = pythae(folder, x, last=True, compiled=True)
    counts: dict[str, dict[str, Any]] = {
        name: {"parameters": size(model)} for name, (model, _) in made.items()
    }
    for name in made:
        counts[name] |= {"gflop": gflop(made[name][1])} if "compiled" not in name else {}
    rows = timed(
        "vqvae step", {name: act for name, (_, act) in made.items()}, counts, options.rounds, warm=2
    )
    by_name = {row["name"]: row["seconds"]["median"] for row in rows}
    for row in rows:
        if row["name"].startswith("tessella") and "pythae" in by_name:
            ratio = row["seconds"]["median"] / by_name["pythae"]
            row |= {"of_pythae": ratio, "target": STEP_TARGET, "met": ratio <= STEP_TARGET}
            print(f"{row['name']}: {ratio:.2f} of pythae's seconds, target {STEP_TARGET}")
    return rows


# ---- a VQGAN
# --------------------------------------------------------------------------------------------------


def our_vqgan(image: torch.Tensor) -> tuple[nn.Module, Act, Act]:
    model = ts.create_tokenizer("vqgan", image_size=(SIDE, SIDE)).eval()
    pixels = (image.movedim(1, -1) * 255).to(torch.uint8)
    symbols = model.encode(pixels)
    return model, lambda: model.encode(pixels), lambda: model.decode(symbols)


def taming(folder: Path, image: torch.Tensor) -> tuple[nn.Module, Act, Act]:
    """The parts that taming's VQModel joins; that class itself needs Lightning."""
    with importing(folder, ["taming", "main"]):
        parts = importlib.import_module("taming.modules.diffusionmodules.model")
        quantizer = importlib.import_module("taming.modules.vqvae.quantize").VectorQuantizer2
    sizes: dict[str, Any] = {
        "double_z": False,
        "z_channels": 256,
        "resolution": SIDE,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 128,
    }
    sizes |= {
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
        codes = model["quantizer"](model["to_code"](model["encoder"](2 * image - 1)))
        return codes[2][2]

    symbols = encode().reshape(-1)

    def decode() -> torch.Tensor:
        features = model["quantizer"].get_codebook_entry(symbols, (1, 16, 16, 256))  # type: ignore[operator]
        return model["decoder"](model["from_code"](features))

    return model, encode, decode


def llamagen(folder: Path, image: torch.Tensor) -> tuple[nn.Module, Act, Act]:
    with importing(folder, ["tokenizer", "utils", "autoregressive"]):
        made = importlib.import_module("tokenizer.tokenizer_image.vq_model").VQ_16
        model = made(codebook_size=16384, codebook_embed_dim=8).eval()
    symbols = model.encode(2 * image - 1)[2][2]
    return (
        model,
        lambda: model.encode(2 * image - 1),
        lambda: model.decode_code(symbols, (1, 8, 16, 16)),
    )


@torch.no_grad()
def vqgan(options: argparse.Namespace) -> list[dict[str, Any]]:
    image = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    made = {"tessella": our_vqgan(image)}
    if (PEERS / "taming-transformers").is_dir():
        made["taming-transformers"] = taming(PEERS / "taming-transformers", image)
    if (PEERS / "LlamaGen").is_dir():
        made["LlamaGen"] = llamagen(PEERS / "LlamaGen", image)
    rows = []
    if options.bf16:
        made |= {
            f"{name}, bf16": (model, half(encode), half(decode))
            for name, (model, encode, decode) in made.items()
        }
    for what, which, target in (
        ("vqgan encode", 1, ENCODE_TARGET),
        ("vqgan decode", 2, DECODE_TARGET),
    ):
        acts: dict[str, Act] = {name: parts[which] for name, parts in made.items()}
        counts = {
            name: {"parameters": size(made[name][0]), "gflop": gflop(act)}
            for name, act in acts.items()
        }
        rows += timed(what, acts, counts, options.rounds, warm=1)
        for row in rows[-len(acts) :]:
            row["images_s"] = 1 / row["seconds"]["median"]
            row |= (
                {"target": target, "met": row["images_s"] >= target}
                if "tessella" in row["name"]
                else {}
            )
            print(
                f"{what}: {row['name']} {row['images_s']:.2f} images/s",
                f"target {target}" * ("target" in row),
            )
    return rows


# ---- both
# --------------------------------------------------------------------------------------------------


def timed(
    what: str, acts: dict[str, Act], counts: dict[str, dict[str, Any]], rounds: int, warm: int
) -> list[dict[str, Any]]:
    """A row for each piece of work: seconds, and what the machine gave beside it."""
    noise, a = others(), torch.randn(2048, 2048)
    seconds = alternate({**acts, "product": lambda: a @ a}, rounds, warm)
    machine = {
        "product_gflop_s": 2 * 2048**3 / seconds.pop("product")["median"] / 1e9,
        "others": noise(),
    }
    rows = []
    for name, times in seconds.items():
        row = {"work": what, "name": name, "seconds": times, **counts[name], **machine}
        row |= {"gflop_s": row["gflop"] / times["median"]} if "gflop" in row else {}
        rows.append(row)
        speed = (
            f"{row['gflop_s']:.0f} GFLOP/s of {machine['product_gflop_s']:.0f}"
            if "gflop_s" in row
            else ""
        )
        print(
            f"{what:14} {name:24} {times['median']:7.3f} s ({times['least']:.3f} to "
            f"{times['greatest']:.3f}) {speed}"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", nargs="*", help="vqvae, vqgan; both where nothing is named")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--out", default="")
    options = parser.parse_args()
    works = {"vqvae": vqvae, "vqgan": vqgan}
    if unknown := set(options.work) - set(works):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are vqvae and vqgan")
    rows = [row for work in options.work or works for row in works[work](options)]
    print(write("tokenizers", rows, options.out))


if __name__ == "__main__":
    main()
