"""What the page gets is what Python gives, symbol for symbol."""

from __future__ import annotations

import base64
import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from served_page import Served, array, png, symbols_text, text

import tessella as ts
from tessella.models.hierarchy import level_condition
from tessella.pipeline.kept_twin import exact_twin_of
from tessella.report.codebook_figures import code_patches
from tessella.sampling import WalkOrder
from tessella.tokenizers.tokenizer import as_tuple


def drawn(served: Served, body: dict[str, object], path: str = "/api/draw") -> dict[str, Any]:
    """The last event of drawing."""
    name, facts = served.events(path, body)[-1]
    assert name == "done"
    return facts


@pytest.mark.parametrize("name", ["digits", "digits-codes", "hierarchy"])
def test_an_image_of_a_seed_is_that_of_python(served: Served, name: str) -> None:
    model = served.models[name]
    facts = drawn(served, {"model": name, "seed": 11, "n": 3})
    for number in range(3):
        wanted = model.sample(1, seed=11 + number)[0]
        got = array(facts["images"][number], "u1", *wanted.shape)
        assert np.array_equal(got, wanted)
        # And the symbols are those that decode to it.
        symbols = []
        for sent, grid in zip(facts["symbols"][number], model.grids, strict=True):
            symbols.append(torch.from_numpy(array(sent, "<i4", 1, *grid.shape).astype(np.int64)))
        given = tuple(symbols) if len(symbols) > 1 else symbols[0]
        assert torch.equal(model.tokenizer.decode(given)[0], wanted)


def test_rules_are_those_of_python(served: Served) -> None:
    rules: dict[str, Any] = {"temperature": 0.7, "top_k": 5, "top_p": 0.9}
    facts = drawn(served, {"model": "digits", "seed": 3, **rules})
    wanted = served.models["digits"].sample(1, seed=3, **rules)[0]
    assert np.array_equal(array(facts["images"][0], "u1", 8, 8, 1), wanted)


def test_classes_and_guidance_are_those_of_python(served: Served) -> None:
    model = served.models["classes"]
    asked = {"model": "classes", "seed": 5, "class_label": 2, "guidance": 3.0}
    wanted = model.sample(1, seed=5, cond=torch.tensor([2]), guidance=3.0)[0]
    got = array(drawn(served, asked)["images"][0], "u1", 5, 6, 3)
    assert np.array_equal(got, wanted)
    without = array(drawn(served, asked | {"guidance": 1.0})["images"][0], "u1", 5, 6, 3)
    assert not np.array_equal(without, wanted)


def test_a_seed_beyond_the_numbers_of_javascript_is_a_string(served: Served) -> None:
    seed = (1 << 64) - 1
    facts = drawn(served, {"model": "digits", "seed": str(seed)})
    wanted = served.models["digits"].sample(1, seed=seed)[0]
    assert np.array_equal(array(facts["images"][0], "u1", 8, 8, 1), wanted)


def test_rows_arrive_one_after_another(served: Served) -> None:
    events = served.events("/api/draw", {"model": "digits", "seed": 2, "n": 2})
    assert [facts["placed"] for _, facts in events] == [8 * row for row in range(1, 9)]
    assert [name for name, _ in events] == ["rows"] * 7 + ["done"]
    last = array(events[-1][1]["images"][1], "u1", 8, 8, 1)
    for row, (_, facts) in enumerate(events):
        partial = array(facts["images"][1], "u1", 8, 8, 1)
        assert np.array_equal(partial[: row + 1], last[: row + 1])
        assert not partial[row + 1 :].any()


@pytest.mark.parametrize(
    ("name", "order"),
    [("digits", "raster"), ("digits-codes", "raster"), ("any-order", "known-first")],
)
def test_completions_are_those_of_python(
    served: Served, digits: np.ndarray, name: str, order: WalkOrder
) -> None:
    known = np.zeros((8, 8), dtype=bool)
    known[:4] = True
    known[6:, 2:6] = True
    body = {
        "model": name,
        "seed": 9,
        "n": 3,
        "image": text(digits[1]),
        "known": text(known.astype(np.uint8)),
    }
    facts = drawn(served, body, "/api/complete")
    repeated = np.repeat(digits[1:2], 3, axis=0)
    mask = torch.from_numpy(known)
    wanted = served.models[name].complete(repeated, mask, seed=9, order=order)
    for got, image in zip(facts["images"], wanted, strict=True):
        assert np.array_equal(array(got, "u1", 8, 8, 1), image)


def scores(served: Served, body: dict[str, object]) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The answer about a picture, and its maps."""
    facts = served.ask("/api/bits", body)
    maps = []
    for part in facts["maps"]:
        maps.append(array(part["bits"], "<f4", part["height"], part["width"], part["depth"]))
    return facts, maps


@pytest.mark.parametrize("name", ["digits", "digits-codes"])
def test_bits_are_those_of_log_prob(served: Served, digits: np.ndarray, name: str) -> None:
    model = served.models[name]
    facts, maps = scores(served, {"model": name, "image": text(digits[0])})
    nats = model.log_prob(digits[:1]).item()
    assert facts["bits"] == pytest.approx(-nats / math.log(2), rel=1e-5)
    symbols = model.encode(digits[:1])
    places = -model.prior.log_prob(symbols, reduce=False)[0] / math.log(2)
    np.testing.assert_allclose(maps[0], places.detach(), rtol=1e-4, atol=1e-5)
    assert facts["symbols"] == symbols_text((symbols,))
    # Its symbols are as good as its pixels.
    again, _ = scores(served, {"model": name, "symbols": facts["symbols"]})
    assert again["bits"] == pytest.approx(facts["bits"])


def test_bits_of_several_grids_add_up(served: Served) -> None:
    model = served.models["hierarchy"]
    image = np.random.default_rng(0).integers(256, size=(1, 16, 16, 3), dtype=np.uint8)
    facts, maps = scores(served, {"model": "hierarchy", "image": text(image)})
    nats = [part.item() for part in model.grid_log_probs(model.encode(image))]
    got = [part.sum() for part in maps]
    assert got == pytest.approx([-part / math.log(2) for part in nats], rel=1e-4)
    assert facts["bits"] == pytest.approx(sum(got), rel=1e-5)


def test_a_picture_of_tiles_is_so_many_images(served: Served, digits: np.ndarray) -> None:
    top = np.concatenate([digits[0], digits[1]], axis=1)
    bottom = np.concatenate([digits[2], digits[3]], axis=1)
    picture = np.concatenate([top, bottom], axis=0)
    _, maps = scores(served, {"model": "digits", "image": text(picture), "tiles": 2})
    _, alone = scores(served, {"model": "digits", "image": text(digits[2])})
    assert maps[0].shape == (16, 16, 1)
    np.testing.assert_allclose(maps[0][8:, :8], alone[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["digits", "digits-codes", "classes"])
def test_what_was_expected_is_the_distribution(served: Served, name: str) -> None:
    model = served.models[name]
    prior = model.prior
    grid = prior.grid
    x = torch.randint(grid.levels, (1, *grid.shape), generator=torch.Generator().manual_seed(1))
    body: dict[str, object] = {"model": name, "symbols": symbols_text((x,)), "row": 2, "column": 3}
    facts = served.ask("/api/expect", body)
    with torch.no_grad():
        table = prior.distribution(x, prior.condition(None, 1)).table(x)[0, 2, 3]
    assert facts["symbols"] == x[0, 2, 3].tolist()
    got = np.stack([array(row, "<f4", grid.levels) for row in facts["probabilities"]])
    np.testing.assert_allclose(got, table.exp(), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(got.sum(axis=1), 1, rtol=1e-5)


def test_what_was_expected_of_a_finer_grid_knows_the_coarser_one(served: Served) -> None:
    model = served.models["hierarchy"]
    symbols = as_tuple(model.encode(np.full((1, 16, 16, 3), 90, np.uint8)))
    facts = served.ask(
        "/api/expect",
        {
            "model": "hierarchy",
            "symbols": symbols_text(symbols),
            "grid": 1,
            "row": 1,
            "column": 2,
        },
    )
    prior = model.priors[1]
    condition = prior.condition(level_condition(prior, None, symbols[:1]), 1)
    with torch.no_grad():
        table = prior.distribution(symbols[1], condition).table(symbols[1])[0, 1, 2, 0]
    np.testing.assert_allclose(array(facts["probabilities"][0], "<f4", 16), table.exp(), rtol=1e-4)


def test_what_is_expected_in_a_tile_is_that_of_the_tile(served: Served, digits: np.ndarray) -> None:
    picture = np.concatenate([digits[0], digits[1]], axis=1)
    picture = np.concatenate([picture, picture], axis=0)
    whole, _ = scores(served, {"model": "digits", "image": text(picture), "tiles": 2})
    alone, _ = scores(served, {"model": "digits", "image": text(digits[1])})
    asked: dict[str, object] = {"model": "digits", "row": 8 + 3, "column": 8 + 4, "tiles": 2}
    got = served.ask("/api/expect", asked | {"symbols": whole["symbols"]})
    asked = {"model": "digits", "row": 3, "column": 4, "symbols": alone["symbols"]}
    assert got == served.ask("/api/expect", asked)


@pytest.mark.parametrize("name", ["digits-codes", "digits-vqvae"])
def test_codes_go_there_and_back_as_in_python(
    served: Served, digits: np.ndarray, name: str
) -> None:
    tokenizer = served.models[name].tokenizer
    codes = tokenizer.encode(digits[:1])
    facts = served.ask("/api/codes", {"model": name, "image": text(digits[0])})
    assert facts["symbols"] == symbols_text((codes,))
    back = tokenizer.decode(codes)[0].numpy()
    assert np.array_equal(array(facts["image"], "u1", 8, 8, 1), back)
    error = np.mean((digits[0].astype(float) - back) ** 2)
    assert facts["psnr"] == pytest.approx(10 * math.log10(255**2 / error), rel=1e-6)
    # A code that was changed by hand.
    codes[0, 1, 2, 0] = (codes[0, 1, 2, 0] + 7) % 64
    changed = served.ask("/api/codes", {"model": name, "symbols": symbols_text((codes,))})
    assert np.array_equal(array(changed["image"], "u1", 8, 8, 1), tokenizer.decode(codes)[0])
    assert changed["image"] != facts["image"]


def test_patches_are_what_each_code_decodes_to(served: Served) -> None:
    books = served.get("/api/books?model=hierarchy").json()["books"]
    tokenizer = served.models["hierarchy"].tokenizer
    assert [book["grid"] for book in books] == [0, 1]
    for number, book in enumerate(books):
        wanted = code_patches(tokenizer, number, np.arange(16))
        assert book["codes"] == 16
        assert wanted.shape == (16, book["side"], book["side"], 3)
        codes = np.array([11, 2], dtype="<i4")
        asked = {"model": "hierarchy", "book": number, "codes": text(codes)}
        patches = array(served.ask("/api/patches", asked)["patches"], "u1", 2, *wanted.shape[1:])
        assert np.array_equal(patches, wanted[[11, 2]])


@pytest.mark.parametrize(
    ("book", "codes", "words"),
    [
        (2, [0], "book must be an integer in 0..1, got 2"),
        (0, [], "ask for 1 to 163 codes of this codebook at once, got 0"),
        (0, [0] * 164, "ask for 1 to 163 codes of this codebook at once, got 164"),
        (0, [16], "codes must lie in 0..15, got 16..16"),
        (0, [-1, 3], "codes must lie in 0..15, got -1..3"),
    ],
)
def test_codes_that_there_are_not_have_no_patches(
    served: Served, book: int, codes: list[int], words: str
) -> None:
    asked = {"model": "hierarchy", "book": book, "codes": text(np.array(codes, dtype="<i4"))}
    answer = served.post("/api/patches", asked)
    assert answer.status_code == 400
    assert answer.json()["error"] == words


def test_a_file_becomes_a_picture_of_the_model(served: Served, digits: np.ndarray) -> None:
    # A picture of the model's size and levels stays what it is.
    facts = served.ask("/api/picture?model=digits", png(digits[0]))
    assert np.array_equal(array(facts["image"], "u1", 8, 8, 1), digits[0])
    colours = np.random.default_rng(0).integers(256, size=(40, 70, 3), dtype=np.uint8)
    facts = served.ask("/api/picture?model=digits&tiles=2", png(colours))
    values = array(facts["image"], "u1", 16, 16, 1)
    levels = {round(255 * level / 16) for level in range(17)}
    assert set(values.flatten().tolist()) <= levels


def test_real_images_are_those_of_the_model(served: Served, digits: np.ndarray) -> None:
    images = served.get("/api/real-images?model=digits-codes").json()["images"]
    assert np.array_equal(array(images[2], "u1", 8, 8, 1), digits[2])
    assert served.get("/api/real-images?model=classes").json()["images"] == []


def test_a_compressed_file_holds_the_picture(served: Served, digits: np.ndarray) -> None:
    pytest.importorskip("constriction", reason="compressed files need the extra compress")
    content = png(np.concatenate([digits[0], digits[1]], axis=1))
    facts = served.ask("/api/compress?model=digits&name=a/b/two.png", content)
    packed = base64.b64decode(facts["file"])
    assert facts["name"] == "two.tsl"
    assert facts["bytes"] == len(packed)
    assert facts["lossless"] is True
    twin = exact_twin_of("digits", served.models["digits"], print)
    (restored,) = ts.decompress(packed, twin)
    assert np.array_equal(restored, np.concatenate([digits[0], digits[1]], axis=1))
    same = io.BytesIO()
    Image.open(io.BytesIO(content)).save(same, "PNG", optimize=True)
    assert facts["png_bytes"] == len(same.getvalue())


def test_codes_are_compressed_with_the_prior(served: Served, digits: np.ndarray) -> None:
    pytest.importorskip("constriction", reason="compressed files need the extra compress")
    facts = served.ask("/api/compress?model=digits-codes", png(digits[0]))
    assert facts["lossless"] is False
    twin = exact_twin_of("digits-codes", served.models["digits-codes"], print)
    (restored,) = ts.decompress(base64.b64decode(facts["file"]), twin)
    codes = served.models["digits-codes"].encode(digits[:1])[0]
    assert torch.equal(restored, codes)


def test_facts_of_models_say_what_they_can_do(served: Served) -> None:
    facts = {model["name"]: model for model in served.get("/api/models").json()["models"]}
    assert facts["digits"]["abilities"] == ["draw", "complete", "bits", "compress"]
    assert facts["digits-codes"]["abilities"] == ["draw", "complete", "bits", "codes", "compress"]
    assert facts["digits-vqvae"]["abilities"] == ["codes"]
    assert facts["hierarchy"]["abilities"] == ["draw", "complete", "bits", "codes"]
    assert facts["classes"]["classes"] == ["0", "1", "2"]
    assert facts["classes"]["guidance"] is True
    assert facts["digits"]["levels"] == 17
