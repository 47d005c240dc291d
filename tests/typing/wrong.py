"""Mistakes that a type checker finds: every line with an error says which, and ``make types`` fails
where one of them passes (an ignore that is not needed is an error).

It is never run.
"""

from __future__ import annotations

import tessella as ts


def use() -> None:
    grid = ts.Grid(height=8, width=8, channels=1, levels=17)
    model = ts.create("gated-pixelcnn", grid)

    ts.load("digits").sample(4, temprature=0.9)  # type: ignore[call-arg]
    ts.load("digits").sample("four")  # type: ignore[arg-type]
    ts.load("digits").encode(1, 2)  # type: ignore[call-arg]
    ts.load("digits-vqvae").sample(4)  # type: ignore[operator]
    ts.load("digits", device=0)  # type: ignore[call-overload]

    generator = ts.load("runs/python", expect=ts.Generator)
    generator.sample(4, top_q=0.9)  # type: ignore[call-arg]
    generator.sample(4, temperature="hot")  # type: ignore[arg-type]
    generator.batches(4, clas=3)  # type: ignore[call-arg]
    generator.complete(1, 2, gidance=2.0)  # type: ignore[call-arg]
    generator.samples(4)  # type: ignore[attr-defined]

    vae = ts.load("runs/vae", expect=ts.VAE)
    vae.sample(4, temperature=0.9)  # type: ignore[call-arg]
    vae.sample(4, pixels="mode")  # type: ignore[arg-type]
    vae.complete(1, 2)  # type: ignore[operator]

    ts.sample(model, temprature=0.9)  # type: ignore[call-arg]
    ts.complete(model, 1, 2, tmperature=1.0)  # type: ignore[call-arg]
    ts.evaluate(generator, bach=5)  # type: ignore[call-arg]
    ts.train(model, 1, out="x", minuts=1)  # type: ignore[call-arg]
