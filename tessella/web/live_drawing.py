"""Draw and complete: images that arrive row by row, from the stream that everything else uses."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator as Stream

import numpy as np
import torch

from tessella.errors import InputError, check_integer
from tessella.files import JSONValue
from tessella.noise import check_seed
from tessella.pipeline import CompletesImages, DrawsImages, Generator, require
from tessella.tokenizers.tokenizer import Symbols, as_tuple
from tessella.web.page_requests import (
    MOST_IMAGES,
    ToComplete,
    ToDraw,
    as_text,
    images_from,
    mask_from,
    symbols_as_text,
)
from tessella.web.served_models import ServedModel
from tessella.web.work_queue import Computation, Work


def drawing(asked: ToDraw, served: ServedModel) -> Work:
    """The work of drawing images; it tells of each row, and its result holds the symbols.

    Image ``i`` is ``sample(1, seed=seed + i)`` in Python, symbol for symbol.

    Raises:
        InputError: for a value out of range, or a rule where all pixels are drawn at once.
    """
    model = require(served.model, DrawsImages, served.name)
    _check(asked)
    rule = asked.rule()
    if not isinstance(model, Generator):
        if asked.class_label is not None or any(
            value != getattr(ToDraw, name) for name, value in rule.items()
        ):
            raise InputError("a VAE draws all pixels at once: it has no class and no rules")

        def draw_at_once(job: Computation) -> bytes:
            images = model.sample(asked.n, asked.seed)
            return _event("done", {"images": _pictures(images)})

        return draw_at_once

    model.check_condition(asked.labels(), asked.n)

    def draw(job: Computation) -> bytes:
        stream = model.stream_symbols(asked.n, asked.seed, cond=asked.labels(), **rule)
        return _tell_rows(job, model, stream)

    return draw


def completing(asked: ToComplete, served: ServedModel) -> Work:
    """The work of completing a picture ``n`` times, told of as :func:`drawing` is.

    A model that predicts in any order sees all that is kept, others what is kept above.

    Raises:
        InputError: for a value out of range.
    """
    require(served.model, CompletesImages, served.name)
    model = served.model
    assert isinstance(model, Generator)
    _check(asked)
    rule = asked.rule()
    model.check_condition(asked.labels(), asked.n)
    images = np.repeat(images_from(asked.image, served), asked.n, axis=0)
    known = mask_from(asked.known, served)
    if all(prior.any_order for prior in model.priors):
        rule["order"] = "known-first"

    def complete(job: Computation) -> bytes:
        x, kept = model.symbols_to_keep(images, known)
        stream = model.stream_symbols(
            asked.n, asked.seed, cond=asked.labels(), x=x, known=kept, **rule
        )
        return _tell_rows(job, model, stream)

    return complete


def _check(asked: ToDraw) -> None:
    check_integer("n", asked.n, least=1, most=MOST_IMAGES)
    check_seed(asked.seed, asked.n)


def _tell_rows(
    job: Computation, model: Generator, stream: Stream[tuple[int, Symbols], None, None]
) -> bytes:
    """Tell of every row of symbols as it is placed.

    Returns:
        The last event, with the whole images and their symbols.
    """
    # Closed at once where the client leaves: the error that says so would keep its memory.
    with contextlib.closing(stream):
        for placed, symbols in stream:
            # What is still missing is decoded like anything else.
            pictures = _pictures(model.tokenizer.decode(symbols))
            facts: dict[str, JSONValue] = {
                "placed": placed,
                "of": model.symbols,
                "images": pictures,
            }
            if placed == model.symbols:
                # One list of grids for each image.
                grids = [symbols_as_text(list(part)) for part in as_tuple(symbols)]
                facts["symbols"] = [list(parts) for parts in zip(*grids, strict=True)]
                return _event("done", facts)
            job.tell(_event("rows", facts))
    raise AssertionError("a stream ends with all symbols in place")


def _pictures(images: torch.Tensor) -> list[JSONValue]:
    return [as_text(image) for image in images]


def _event(name: str, facts: dict[str, JSONValue]) -> bytes:
    """A server-sent event."""
    return f"event: {name}\ndata: {json.dumps(facts)}\n\n".encode()


def failure(message: str) -> bytes:
    """The event of an error after the first row."""
    return _event("error", {"error": message})
