"""Code as users write it, which a type checker accepts: ``make types`` checks this file.

It is not run.
"""

from __future__ import annotations

import torch

import tessella as ts
from tessella import data
from tessella.config import DataConfig


def use() -> None:
    digits = data.load(DataConfig("digits"), "train").images
    grid = ts.Grid(height=8, width=8, channels=1, levels=17)
    model = ts.create("gated-pixelcnn", grid, layers=4, hidden=32, dropout=0.3)
    run = ts.train(model, digits, minutes=1, out="runs/python")

    x: torch.Tensor = ts.sample(model, n=16, seed=0, temperature=0.9, top_k=5)
    completed: torch.Tensor = ts.complete(model, x, torch.ones(8, 8, dtype=torch.bool), seed=1)
    gap: torch.Tensor = ts.replay(model, x, seed=0).gap
    half = torch.ones(8, 8, dtype=torch.bool).tril()
    fitting: torch.Tensor = ts.complete(model, x, half, order="known-first", top_k=3)
    nats: torch.Tensor = ts.log_prob_missing(model, x, half)

    # A bundled model is known by its name.
    images: torch.Tensor = ts.load("digits").sample(4)
    bits: torch.Tensor = ts.load("digits-codes").bits_per_dim(images)
    codes = ts.load("digits-vqvae").encode(images)

    # A directory can hold anything: it passes for anything, or is what was asked for.
    drawn = ts.load("runs/python").sample(16, seed=0)
    generator = ts.load("runs/python", expect=ts.Generator)
    sharp: torch.Tensor = generator.sample(16, seed=0, temperature=0.8, guidance=2.0, top_p=0.9)
    tokenizer = ts.load("runs/vqvae", expect=ts.Tokenizer)
    vae = ts.load("runs/vae", expect=ts.VAE)
    noisy: torch.Tensor = vae.sample(4, pixels="draw")

    for batch in generator.batches(100, batch=10, cond=None, method="cached"):
        print(batch.shape)
    for index, partial in generator.stream(2, every=8):
        print(index, partial.shape)

    figures = ts.evaluate(generator, images)
    print(figures["bits_per_dim"])
