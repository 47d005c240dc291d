"""Windows of the next pixels against cached steps: passes, equality and speed.

    python benchmarks/windows.py                                        # bundled codes, and steps
    python benchmarks/windows.py --codes 1024 16384 --data cifar10:DIR  # and codes of more levels
    python benchmarks/windows.py --runs runs/prior --pixels 8 --step 0  # one run alone

Of every run images are drawn one by one, by cached steps and by windows of several sizes: in
float64, where no symbol may differ, and in float32, where rounding may turn a near-tie.

``--codes LEVELS`` makes a stand-in for codes of so many levels: the 2x2 patches of 32x32 images,
each coded by the nearest of LEVELS patches of other images, and a transformer of 4 layers and width
128 that is trained on them for ``--training`` steps. Its bits a code say how much it has learned.

``--step ROUNDS`` times a pass and a cached step of the large transformer of ``sampling.py``, in the
middle of an image. Its weights are random, so this says what a pass costs but not how many an image
needs: a window pays where a run needs fewer passes a symbol than ``step_over_pass``. Rows are
merged into ``results/windows.json``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import harness
import torch
from sampling import WORKS

import tessella as ts
from tessella import data
from tessella.config import DataConfig
from tessella.noise import Noise
from tessella.sampling import Rule, Sampler, Sampling
from tessella.sampling.windows import Windows

KEYS = ("what", "pixels")
SIDE = 32
"""Side of the images whose patches are coded."""
CODED = 2048
"""Images that are coded; the last eighth of them measures bits a code."""
BATCH = 4
"""Images of a training step."""
PLACE = 128
"""The pixel at which passes and steps are timed, in the middle of the large transformer's grid."""


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", nargs="*", default=["cifar10-codes"], help="run directories")
    parser.add_argument("--codes", nargs="*", type=int, default=[], help="levels of stand-ins")
    parser.add_argument("--data", default="", help="32x32 images for --codes")
    parser.add_argument("--training", type=int, default=150, help="training steps of --codes")
    parser.add_argument("--pixels", nargs="+", type=int, default=[2, 4, 8, 16, 32])
    parser.add_argument("--seeds", type=int, default=16, help="images of each run")
    parser.add_argument("--step", type=int, default=5, help="rounds of the timed steps; 0: none")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", default="")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)

    models = {Path(run).name: prior_of(run) for run in chosen.runs}
    facts: dict[str, harness.Row] = {}
    for levels in chosen.codes:
        name = f"patches of {levels} levels"
        models[name], bits = stand_in(chosen.data, levels, chosen.training)
        facts[name] = {"training_steps": chosen.training, "bits_a_code": bits}
    for name, model in models.items():
        for row in measure(model, chosen.pixels, chosen.seeds):
            harness.merge("windows", {"what": name} | facts.get(name, {}) | row, KEYS, chosen.out)
            print(describe_passes(name, row), flush=True)
    if chosen.step:
        for row in time_passes(chosen.pixels, chosen.step):
            harness.merge("windows", row, KEYS, chosen.out)
            print(
                f"{row['what']}, {row['pixels']} pixels: a pass takes {row['pass_ms']:.2f} ms, "
                f"a step {row['step_ms']:.2f} ms",
                flush=True,
            )


def prior_of(run: str) -> ts.DensityModel:
    """The density model of a run."""
    loaded = ts.load(run)
    assert isinstance(loaded, ts.Generator)
    assert isinstance(loaded.prior, ts.DensityModel)
    return loaded.prior


def measure(model: ts.DensityModel, sizes: Sequence[int], seeds: int) -> list[harness.Row]:
    """A row for each size of a window: passes, differences from cached steps, and times."""
    rows = []
    sampler = Sampler(model, Sampling("cached", every=model.grid.symbols))
    cached, cached_seconds = draw_by_steps(sampler, seeds)
    wide_model = ts.models.from_config(model.config())
    wide_model.load_state_dict(model.state_dict())
    wide_model.double().eval()
    wide_sampler = Sampler(wide_model, Sampling("cached", every=model.grid.symbols))
    wide, _ = draw_by_steps(wide_sampler, seeds)
    for pixels in sizes:
        drawn, passes, seconds = draw_by_windows(model, pixels, seeds)
        wide_drawn, wide_passes, _ = draw_by_windows(wide_model, pixels, seeds)
        rows.append(
            {
                "pixels": pixels,
                "images": seeds,
                "symbols": model.grid.symbols,
                "levels": model.grid.levels,
                "passes_a_symbol": passes / (seeds * model.grid.symbols),
                "passes_a_symbol_float64": wide_passes / (seeds * model.grid.symbols),
                "symbols_that_differ_float64": int((wide_drawn != wide).sum()),
                "images_that_differ_float32": int((drawn != cached).flatten(1).any(1).sum()),
                "widest_tie_nats": widest_tie(model, drawn),
                "cached_s_an_image": cached_seconds,
                "windows_s_an_image": seconds,
            }
        )
    return rows


def draw_by_steps(sampler: Sampler, seeds: int) -> tuple[torch.Tensor, float]:
    """Images drawn one by one, and the seconds of each, without the first."""
    images = []
    started = 0.0
    for seed in range(seeds):
        if seed == 1:
            started = time.perf_counter()
        images.append([x.clone() for _, x in sampler.stream(1, seed)][-1])
    return torch.cat(images), (time.perf_counter() - started) / max(1, seeds - 1)


def draw_by_windows(
    model: ts.DensityModel, pixels: int, seeds: int
) -> tuple[torch.Tensor, int, float]:
    """Images drawn one by one, all their passes, and the seconds of each, without the first."""
    window = model.window(1, pixels)
    images = []
    passes = 0
    started = 0.0
    for seed in range(seeds):
        if seed == 1:
            started = time.perf_counter()
        noise = Noise(model.grid, 1, seed)
        walk = Windows(model, window, model.condition(None, 1), noise, Rule())
        for _ in walk.walk():
            pass
        images.append(walk.x.view(1, *model.grid.shape))
        passes += int(walk.passes.sum())
    return torch.cat(images), passes, (time.perf_counter() - started) / max(1, seeds - 1)


def widest_tie(model: ts.DensityModel, x: torch.Tensor) -> float:
    """By how many nats at most a pass over the images would have drawn another symbol."""
    # Images have the seeds 0, 1, ... as in one call.
    return float(ts.replay(model, x).gap.max())


def describe_passes(name: str, row: harness.Row) -> str:
    """A row as a line to read."""
    ratio = row["cached_s_an_image"] / row["windows_s_an_image"]
    return (
        f"{name}, {row['pixels']} pixels: {row['passes_a_symbol']:.3f} passes a symbol, "
        f"{row['symbols_that_differ_float64']} symbols differ in float64, "
        f"{row['images_that_differ_float32']} of {row['images']} images in float32; "
        f"cached / windows {ratio:.2f}"
    )


def stand_in(source: str, levels: int, steps: int) -> tuple[ts.DensityModel, float]:
    """A small transformer trained on coded patches, and its bits a code on other images."""
    images = data.load(DataConfig(source=source), "train").images[:CODED]
    codes = patch_codes(torch.as_tensor(images), levels)
    held_out = len(codes) // 8
    side = SIDE // 2
    grid = ts.Grid(side, side, 1, levels)
    model = ts.create("transformer", grid, layers=4, width=128, heads=4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    for _ in range(steps):
        x = codes[torch.randint(len(codes) - held_out, (BATCH,))]
        loss = -model.distribution(x, model.condition(None, BATCH)).log_prob(x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        bits = float(model.bits_per_dim(codes[-held_out:]).mean())
    return model, bits


def patch_codes(images: torch.Tensor, levels: int) -> torch.Tensor:
    """The nearest of ``levels`` patches for every 2x2 patch: ``int64 [n, 16, 16, 1]``.

    Args:
        images: ``uint8 [n, 32, 32, channels]``.
        levels: number of patches in the codebook, drawn from the same images.
    """
    assert images.shape[1:3] == (SIDE, SIDE), "codes are made of 32x32 images"
    # [n, 16, 16, 2 * 2 * channels]
    patches = images.float().unfold(1, 2, 2).unfold(2, 2, 2).flatten(3)
    flat = patches.flatten(0, 2)
    codebook = flat[torch.randperm(len(flat))[:levels]]
    nearest = []
    # An image at a time, because the distances of all would not fit into memory.
    for of_image in patches.flatten(1, 2):
        nearest.append(torch.cdist(of_image, codebook).argmin(dim=1))
    return torch.stack(nearest).view(*patches.shape[:3], 1)


def time_passes(sizes: Sequence[int], rounds: int) -> list[harness.Row]:
    """A row for each size of a window: milliseconds of a pass, and of a cached step."""
    model = WORKS["transformer"].create().eval()
    sampler = Sampler(model, Sampling("cached"))
    work = {"step": partial(seconds_of_steps, sampler)}
    for pixels in sizes:
        window = model.window(1, pixels)
        walk = Windows(model, window, model.condition(None, 1), Noise(model.grid, 1), Rule())
        work[str(pixels)] = partial(seconds_of_a_pass, walk)
    times = harness.alternate(work, rounds)
    step = times["step"]["median"]
    rows = []
    for pixels in sizes:
        seconds = times[str(pixels)]["median"]
        rows.append(
            {
                "what": "transformer",
                "pixels": pixels,
                "step_ms": 1e3 * step,
                "pass_ms": 1e3 * seconds,
                "step_over_pass": step / seconds,
            }
        )
    return rows


def seconds_of_steps(sampler: Sampler) -> float:
    """Mean seconds of a cached step, draw included, over the row that begins at ``PLACE``."""
    width = sampler.model.grid.width
    stream = sampler.stream(1, 0)
    for _ in range(PLACE // width):
        next(stream)
    started = time.perf_counter()
    next(stream)
    return (time.perf_counter() - started) / width


def seconds_of_a_pass(walk: Windows) -> float:
    """Mean seconds of a pass over the window at ``PLACE``, guesses and draw included."""
    passes = 8
    seconds = 0.0
    for _ in range(passes):
        # What is before the place does not matter to the time.
        walk.final.fill_(PLACE)
        walk._guessed = PLACE
        started = time.perf_counter()
        walk.advance()
        seconds += time.perf_counter() - started
    return seconds / passes


if __name__ == "__main__":
    main()
