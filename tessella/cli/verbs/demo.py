"""``tessella demo``: the whole chain on the bundled digits.

Density model, VQ-VAE, prior; samples, exact numbers and pictures of all.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import tessella
from tessella import config, data, files
from tessella.cli.processes import set_threads
from tessella.cli.terminal import say
from tessella.cli.verb_options import Demo
from tessella.errors import InputError
from tessella.evaluation import evaluate
from tessella.files import pictures
from tessella.grid import LN2
from tessella.pipeline import Generator, fingerprint, load
from tessella.tokenizers import Tokenizer
from tessella.training import train_recipe

STAGES = {"pixels": ("digits", 1.0), "vqvae": ("digits-vqvae", 0.7), "codes": ("digits-prior", 0.5)}
"""Run directories of the demo: the recipe, and its share of the minutes asked for."""

SHOWN = 32
"""Images on each picture."""


def run(command: Demo) -> int:
    """Run the demo; 130 when it was interrupted."""
    set_threads(command.threads)
    return 0 if demo(Path(command.out), command.minutes) else 130


def demo(out: Path, minutes: float) -> Mapping[str, object] | None:
    """Train, measure once on the test split, draw, and leave all of it in ``out``.

    Args:
        out: directory, replaced if it is an earlier demo's.
        minutes: training minutes of the density model; VQ-VAE and prior take 0.7 and 0.5 of that.

    Returns:
        The figures of the three runs, None when it was interrupted.

    Raises:
        InputError: when ``out`` holds something else.
    """
    _clear(out)
    started = time.monotonic()
    # The prior comes last: it needs the tokenizer.
    for name, (recipe_name, share) in STAGES.items():
        recipe = config.load_recipe(recipe_name, [f"train.minutes={minutes * share}"])
        if name == "codes":
            recipe = replace(recipe, prior_of=str(out / "vqvae"))
        say(f"\n{recipe_name}: {recipe.about}")
        if train_recipe(recipe, out / name, say=say).interrupted:
            return None
    # The test split is read here for the first time, after everything was decided.
    figures = {name: evaluate(out / name) for name in STAGES}
    paths = _draw(out)
    seconds = time.monotonic() - started
    made = files.read_json_object(out / "pixels" / "run.json")["environment"]
    facts = {"status": "finished", "seconds": round(seconds, 1), "figures": figures, "made": made}
    files.write_json(out / "demo.json", facts)
    say(_table(figures))
    say(f"\n{seconds:.0f} s in all; pictures: {', '.join(str(path) for path in paths)}")
    say(f"More of them: tessella sample {out}/pixels --n 64 --seed 1")
    return figures


def _clear(out: Path) -> None:
    """Make an empty directory, of a new name or in the place of an earlier demo."""
    # A directory is removed with all it holds, so it must be certain that a demo made it.
    is_earlier_demo = (out / "demo.json").is_file() and files.made_here(out / "demo.json")
    is_taken = out.exists() and not (out.is_dir() and not any(out.iterdir()))
    if out.is_symlink() or (is_taken and not is_earlier_demo):
        raise InputError(f"{out} exists and is not an earlier demo: give another --out")
    # The record comes first: a demo that is interrupted can be replaced, too.
    shutil.rmtree(out, ignore_errors=True)
    files.make_directory(out)
    files.write_json(out / "demo.json", {"status": "running"})


def _draw(out: Path) -> list[Path]:
    """Save pictures: reconstructions, and samples beside their nearest training images."""
    digits = config.load_recipe("digits").data
    training = np.asarray(data.load(digits, "train").images)
    test = np.asarray(data.load(digits, "test").images[:SHOWN])
    pixels = load(out / "pixels", expect=Generator)
    tokenizer = load(out / "vqvae", expect=Tokenizer)
    codes = load(out / "codes", expect=Generator)

    # Equal numbers of images on all sheets, so that they can be compared at a glance.
    rebuilt = tokenizer.decode(tokenizer.encode(test)).numpy()
    drawn_pixels = pixels.sample(SHOWN).numpy()
    drawn_codes = codes.sample(SHOWN).numpy()
    sheets = {
        "reconstructions": [
            ("test digits", pictures.sheet(test, 8, 6)),
            ("rebuilt from 4x4 codes", pictures.sheet(rebuilt, 8, 6)),
        ],
        "samples_pixels": [
            (
                "samples of the density model | nearest training digit",
                pictures.beside_nearest(drawn_pixels, training, 8, 6),
            )
        ],
        "samples_codes": [
            (
                "samples of the two-stage model | nearest training digit",
                pictures.beside_nearest(drawn_codes, training, 8, 6),
            )
        ],
        "demo": [
            ("real", pictures.sheet(test, 4, 5)),
            ("density model", pictures.sheet(drawn_pixels, 4, 5)),
            ("rebuilt by the VQ-VAE", pictures.sheet(rebuilt, 4, 5)),
            ("VQ-VAE and prior", pictures.sheet(drawn_codes, 4, 5)),
        ],
    }
    made = {
        "tessella": tessella.__version__,
        "seed": 0,
        "pixels": fingerprint(pixels),
        "vqvae": fingerprint(tokenizer),
        "codes": fingerprint(codes),
    }
    paths = []
    for name, panels in sheets.items():
        paths.append(out / f"{name}.png")
        pictures.save_png(paths[-1], pictures.captioned(panels), made)
    return paths


def _table(figures: Mapping[str, Any]) -> str:
    """The figures of the demo as text."""
    pixels = figures["pixels"]
    vqvae = figures["vqvae"]
    codes = figures["codes"]
    lines = [
        f"\nTest split, {pixels['images']} digits, read once."
        f" Pixels: 8x8x1 of 17 levels; codes: {codes['scored_grid']}.\n",
        f"{'':22}{'bits/symbol':>18}{'bits/image':>12}",
    ]
    for kind, model, measured in (
        ("pixels", "density model", pixels),
        ("codes", "prior on codes", codes),
    ):
        # The number of symbols follows from the two units of the same figure.
        symbols = round(measured["nats_per_image"] / measured["bits_per_dim"] / LN2)
        baseline = measured["baseline_bits_per_dim"]
        lines.append(_row(f"independent {kind}", f"{baseline:.3f}{'':8}", baseline * symbols))
        bits = f"{measured['bits_per_dim']:.3f} ± {measured['bits_per_dim_se']:.3f}"
        lines.append(_row(model, bits, measured["bits_per_dim"] * symbols))
    # Bits of pixels and bits of codes are of different things: only the first are compared.
    gain = 1 - pixels["bits_per_dim"] / pixels["baseline_bits_per_dim"]
    lines += [
        f"\nThe density model is {gain:.1%} below independent pixels;"
        " its numbers are exact code lengths of the image.",
        f"The codes cost {codes['bits_per_image']:.1f} bits an image, and lose detail:"
        f" PSNR {vqvae['psnr_db']:.1f} dB (mean image {vqvae['mean_image_psnr_db']:.1f} dB),\n"
        f"SSIM {vqvae['ssim']:.3f}; {vqvae['codebook_used']} of {vqvae['codebook_size']} codes"
        f" used, perplexity {vqvae['code_perplexity']:.1f}.",
    ]
    return "\n".join(lines)


def _row(name: str, bits_per_symbol: str, bits_per_image: float) -> str:
    return f"{name:22}{bits_per_symbol:>18}{bits_per_image:>12.1f}"
