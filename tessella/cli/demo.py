"""The whole chain on the bundled digits: density model, VQ-VAE, prior; samples, exact numbers and
pictures of all."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import tessella
from tessella import config as configs
from tessella import data, files
from tessella.errors import InputError
from tessella.evaluation import evaluate
from tessella.grid import LN2
from tessella.pipeline import Generator, fingerprint, load
from tessella.storage import pictures
from tessella.tokenizers import Tokenizer
from tessella.training import train_recipe

STAGES = {"pixels": ("digits", 1.0), "vqvae": ("digits-vqvae", 0.7), "codes": ("digits-prior", 0.5)}
"""Run directories of the demo: the recipe, and its share of the minutes asked for."""

SHOWN = 32
"""Images on each picture."""


def demo(out: Path, minutes: float) -> dict[str, Any] | None:
    """Train, measure once on the test split, draw, and leave all of it in ``out``.

    Args:
        out: directory, replaced if it is an earlier demo's.
        minutes: training minutes of the density model; VQ-VAE and prior take 0.7 and 0.5 of that.

    Returns:
        The figures of the three runs, None when it was interrupted.

    Raises:
        InputError: when ``out`` holds something else, or ``minutes`` is not above 0.
    """
    if not minutes > 0:
        raise InputError(f"--minutes must be above 0, got {minutes}")
    if (
        out.exists()
        and (not out.is_dir() or any(out.iterdir()))
        and not (out / "demo.json").exists()
    ):
        raise InputError(f"{out} exists and is not an earlier demo: give another --out")
    shutil.rmtree(out, ignore_errors=True)
    files.make_directory(out)
    files.write_json(out / "demo.json", {"status": "running"})
    started = time.monotonic()
    for name, (recipe_name, share) in STAGES.items():
        recipe = configs.load_recipe(recipe_name, [f"train.minutes={minutes * share}"])
        if name == "codes":
            recipe = replace(recipe, prior_of=str(out / "vqvae"))
        print(f"\n{recipe_name}: {recipe.about}", flush=True)
        if train_recipe(recipe, out / name).interrupted:
            return None
    figures = {name: evaluate(out / name) for name in STAGES}
    pictures = _pictures(out)
    seconds = time.monotonic() - started
    made = files.read_json(out / "pixels" / "run.json")["environment"]
    facts = {"status": "finished", "seconds": round(seconds, 1), "figures": figures, "made": made}
    files.write_json(out / "demo.json", facts)
    print(_table(figures))
    print(f"\n{seconds:.0f} s in all; pictures: {', '.join(str(path) for path in pictures)}")
    print(f"More of them: tessella sample {out}/pixels --n 64 --seed 1")
    return figures


def _pictures(out: Path) -> list[Path]:
    """Real digits, reconstructions, and samples of both models, each beside its nearest training
    image."""
    digits = configs.load_recipe("digits").data
    training, test = (
        np.asarray(data.load(digits, "train").images),
        data.load(digits, "test").images[:SHOWN],
    )
    pixels, tokenizer, codes = (load(out / name) for name in STAGES)
    assert isinstance(pixels, Generator)
    assert isinstance(codes, Generator)
    assert isinstance(tokenizer, Tokenizer)
    rebuilt = tokenizer.decode(tokenizer.encode(test)).numpy()
    made: dict[str, Any] = {"tessella": tessella.__version__, "seed": 0}
    made |= {
        "pixels": fingerprint(pixels),
        "vqvae": fingerprint(tokenizer),
        "codes": fingerprint(codes),
    }
    sheets = {
        "reconstructions": [("test digits", test), ("rebuilt from 4x4 codes", rebuilt)],
        "samples_pixels": [
            ("samples of the density model | nearest training digit", pixels.sample(SHOWN).numpy())
        ],
        "samples_codes": [
            ("samples of the two-stage model | nearest training digit", codes.sample(SHOWN).numpy())
        ],
    }
    paths = []
    for name, panels in sheets.items():
        drawn = [
            (
                title,
                pictures.beside_nearest(x, training, 8, 6)
                if "nearest" in title
                else pictures.sheet(x, 8, 6),
            )
            for title, x in panels
        ]
        paths.append(out / f"{name}.png")
        pictures.save_png(paths[-1], pictures.captioned(drawn), made)
    everything = [("real", test), ("density model", pixels.sample(SHOWN).numpy())]
    everything += [
        ("rebuilt by the VQ-VAE", rebuilt),
        ("VQ-VAE and prior", codes.sample(SHOWN).numpy()),
    ]
    paths.append(out / "demo.png")
    pictures.save_png(
        paths[-1],
        pictures.captioned([(t, pictures.sheet(np.asarray(x), 4, 5)) for t, x in everything]),
        made,
    )
    return paths


def _table(figures: dict[str, Any]) -> str:
    pixels, vqvae, codes = figures["pixels"], figures["vqvae"], figures["codes"]
    size = codes["scored_grid"]
    symbols, cells = (round(f["nats_per_image"] / f["bits_per_dim"] / LN2) for f in (pixels, codes))
    rows = [
        (
            "independent pixels",
            pixels["baseline_bits_per_dim"],
            None,
            pixels["baseline_bits_per_dim"] * symbols,
        ),
        (
            "density model",
            pixels["bits_per_dim"],
            pixels["bits_per_dim_se"],
            pixels["bits_per_dim"] * symbols,
        ),
        (
            "independent codes",
            codes["baseline_bits_per_dim"],
            None,
            codes["baseline_bits_per_dim"] * cells,
        ),
        (
            "prior on codes",
            codes["bits_per_dim"],
            codes["bits_per_dim_se"],
            codes["bits_per_image"],
        ),
    ]
    lines = [
        f"\nTest split, {pixels['images']} digits, read once. Pixels: 8x8x1 of 17 levels; codes: {size}.\n"
    ]
    lines += [f"{'':22}{'bits/symbol':>18}{'bits/image':>12}"]
    for name, bits, error, image in rows:
        shown = f"{bits:.3f}" + (f" ± {error:.3f}" if error is not None else "        ")
        lines.append(f"{name:22}{shown:>18}{image:>12.1f}")
    gain = 1 - pixels["bits_per_dim"] / pixels["baseline_bits_per_dim"]
    lines += [
        f"\nThe density model is {gain:.1%} under independent pixels; its numbers are exact code lengths of the image.",
        f"The codes cost {codes['bits_per_image']:.1f} bits an image, and lose something: "
        f"PSNR {vqvae['psnr_db']:.1f} dB (mean image {vqvae['mean_image_psnr_db']:.1f} dB),\nSSIM {vqvae['ssim']:.3f}; "
        f"{vqvae['codebook_used']} of {vqvae['codebook_size']} codes used, perplexity {vqvae['code_perplexity']:.1f}.",
    ]
    return "\n".join(lines)
