"""The page of a run: one file without outside addresses, whose text cannot become markup, made
again the same."""

from __future__ import annotations

import base64
import io
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tessella as ts
from tessella import config as configs
from tessella import data, files
from tessella.cli import entry
from tessella.errors import ArtifactError, InputError
from tessella.tokenizers import Tokenizer
from tessella.training import train_recipe

pytest.importorskip("matplotlib")
page = pytest.importorskip("tessella.report.html")
codes = pytest.importorskip("tessella.report.codebook_figures")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-stage run of 25 steps."""
    changes = [
        "model.layers=2",
        "model.hidden=8",
        "prior_of=digits-vqvae",
        "train.minutes=0",
        "train.steps=25",
    ]
    recipe = configs.load_recipe(
        "digits-prior", [*changes, "train.batch=16", "train.validate_every=10"]
    )
    return train_recipe(
        recipe, tmp_path_factory.mktemp("runs") / "codes", say=lambda line: None
    ).path


@pytest.fixture(scope="module")
def written(run: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its page."""
    out = tmp_path_factory.mktemp("page") / "page.html"
    assert page.write_report(run, out, say=lambda line: None) == out
    return out.read_text(encoding="utf-8")


def write(run: Path | str, tmp_path: Path, **options: Any) -> str:
    out = page.write_report(
        run, tmp_path / "x.html", say=lambda line: None, **{"samples": 0, **options}
    )
    return Path(out).read_text(encoding="utf-8")


class Seen(HTMLParser):
    """Tags, addresses, headings and pictures of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
                self.addresses.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def pictures(text: str) -> list[Image.Image]:
    sources = [a for a in Seen(text).addresses if a.startswith("data:image/png;base64,")]
    return [Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))) for source in sources]


def test_a_page_needs_nothing_else(written: str) -> None:
    seen = Seen(written)
    assert seen.addresses
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in seen.addresses)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(seen.tags)
    assert not seen.handlers
    for outside in ("http://", "https://", "url(//", "@import"):
        assert outside not in written


def test_a_two_stage_page_has_all_its_pieces(written: str) -> None:
    seen = Seen(written)
    for heading in (
        "Figures",
        "Samples",
        "Completions",
        "Reconstructions",
        "Codebook",
        "Curves",
        "How it was made",
    ):
        assert heading in seen.texts
    assert len(pictures(written)) == 4
    assert seen.tags.count("svg") == 4  # use of the codes, loss, learning rate, gradient norm
    assert len(written) < 2_000_000


@pytest.mark.parametrize(
    ("name", "there", "absent"),
    [("digits", "Samples", "Codebook"), ("digits-vqvae", "Codebook", "Samples")],
)
def test_a_page_shows_what_its_kind_has(tmp_path: Path, name: str, there: str, absent: str) -> None:
    seen = Seen(write(name, tmp_path, samples=4))
    assert there in seen.texts
    assert absent not in seen.texts


def test_names_of_svg_parts_are_unique_on_the_page(written: str) -> None:
    names: list[str] = [part.split('"')[0] for part in written.split(' id="')[1:]]
    assert len(names) == len(set(names))


def test_what_users_name_stays_text(run: Path, tmp_path: Path) -> None:
    hostile = Path(shutil.copytree(run, tmp_path / "<img src=x onerror=alert(1)>"))
    label = "</td><script>alert(2)</script>{{ 7 * 7 }}"
    facts = files.read_json(hostile / "run.json")
    facts["recipe"]["about"] = facts["environment"]["command"][0] = label
    files.write_json(
        hostile / "run.json", facts | {"figures": {label: {label: 1.5, "scored_grid": label}}}
    )
    text = write(hostile, tmp_path)
    seen = Seen(text)
    assert "script" not in seen.tags
    assert not seen.handlers
    assert "x" not in seen.addresses
    assert label in seen.texts


def test_the_same_run_gives_the_same_page(
    run: Path, written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "_now", lambda: "some day")
    first, second = (write(run, tmp_path, samples=16) for _ in range(2))
    assert first == second
    assert len(set(written.splitlines()) ^ set(first.splitlines())) == 2  # the line with the date


def test_it_is_written_into_the_run_and_nothing_else_is(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert page.write_report(copy, samples=1, say=lambda line: None) == copy / "report.html"
    after = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert set(after) - set(before) == {copy / "report.html"}
    assert all(after[p] == before[p] for p in before)


def test_samples_are_those_of_their_seeds(run: Path, tmp_path: Path) -> None:
    text = write(run, tmp_path, samples=1, seed=7)
    generator = ts.load(run)
    assert isinstance(generator, ts.Generator)
    shown = np.asarray(pictures(text)[0])
    assert "seed 7" in text
    assert np.array_equal(shown[::64, ::64], generator.sample(1, 7).numpy()[0, :, :, 0])


def test_without_its_data_a_run_has_a_page_that_says_why(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    facts = files.read_json(copy / "run.json")
    facts["recipe"]["data"]["source"] = "npz:nowhere.npz"
    files.write_json(copy / "run.json", facts)
    text = write(copy, tmp_path, samples=2)
    assert "nowhere.npz" in text
    assert "moving averages of the training batches" in text
    assert "Samples" in Seen(text).texts
    assert "Reconstructions" not in Seen(text).texts


def test_without_weights_a_run_has_a_page_that_says_so(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    (copy / "prior" / "model.safetensors").unlink()
    text = write(copy, tmp_path)
    assert "model.safetensors does not exist" in text
    assert not pictures(text)


def test_without_matplotlib_a_page_is_written_that_says_what_is_left_out(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said: list[str] = []
    out = page.write_report(run, tmp_path / "x.html", samples=1, say=said.append)
    text = out.read_text(encoding="utf-8")
    assert "<svg" not in text
    assert "no plots" in text
    assert any('pip install "tessella[plots]"' in line for line in said)
    assert "Samples" in Seen(text).texts
    assert "Codebook" in Seen(text).texts


def test_a_page_replaces_pages_but_no_other_file(run: Path, tmp_path: Path) -> None:
    write(run, tmp_path)
    write(run, tmp_path)
    (tmp_path / "x.html").write_text("<p>mine</p>")
    with pytest.raises(InputError, match="was not made by tessella"):
        write(run, tmp_path)
    write(run, tmp_path, force=True)


def test_the_page_in_the_run_replaces_pages_but_no_other_file(tmp_path: Path) -> None:
    ts.load("digits").save(tmp_path / "run")
    out = tmp_path / "run" / "report.html"
    words = ["info", str(tmp_path / "run"), "--report", "--samples", "0"]
    assert entry.main(words) == 0
    assert entry.main(words) == 0
    out.write_text("<p>mine</p>")
    assert entry.main(words) == 2
    assert out.read_text() == "<p>mine</p>"
    assert entry.main([*words, "--force"]) == 0
    assert files.made_here(out)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("digits", {"out": None}, "ships with the package"),
        ("digits", {"out": "x.txt"}, r"ending in \.html"),
        ("digits", {"out": "x.html", "samples": 65}, "0..64"),
        ("nowhere", {"out": "x.html"}, "no run directory"),
        ("digits", {"out": "/proc/none/x.html"}, "cannot write"),
    ],
)
def test_what_will_not_do_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((InputError, ArtifactError), match=said):
        page.write_report(name, **options)
    assert not list(tmp_path.iterdir())


def test_large_grids_get_fewer_samples_or_none() -> None:
    def generator(side: int, **sizes: int) -> ts.Generator:
        from tessella.pipeline import pixel_generator

        return pixel_generator(ts.create("gated-pixelcnn", ts.Grid(side, side, 1, 4), **sizes))

    assert page.affordable(generator(8, layers=2, hidden=8), 64) == 64
    assert 1 <= page.affordable(generator(128, layers=4, hidden=96), 64) < 64
    assert page.affordable(generator(256, layers=1, hidden=4), 64) == 0


def vqvae() -> Tokenizer:
    tokenizer = ts.load("digits-vqvae")
    assert isinstance(tokenizer, Tokenizer)
    return tokenizer


def test_the_atlas_shows_the_most_used_first_and_crosses_out_the_unused() -> None:
    tokenizer, counts = vqvae(), np.arange(64)
    picture = codes.atlas(tokenizer, [counts])
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.uri.split(",")[1]))))
    decoded = tokenizer.decode(torch.full((1, 5, 5, 1), 63), (10, 10))[0, 4:6, 4:6, 0].numpy()
    assert np.array_equal(shown[:32:16, :32:16, 0], decoded)
    assert shown.shape[:2] == (4 * 34 - 2, 16 * 34 - 2)
    assert shown[-1, -1].tolist() == [220, 40, 40]
    assert "crossed out" in picture.note
    assert "crossed out" not in codes.atlas(tokenizer, [counts + 1]).note


def several(name: str) -> Tokenizer:
    torch.manual_seed(0)
    options = {"options": {"depth": 3}, "quantizer": "residual-vq"} if name == "vqvae" else {}
    sizes = {"hidden": 8, "code_dim": 4, "codebook_size": 8} | options
    return ts.create_tokenizer(name, image_size=[16, 16], channels=3, **sizes)


@pytest.mark.parametrize(
    ("name", "titles"),
    [("vqvae", ["depth 0", "depth 1", "depth 2"]), ("vqvae2", ["grid 0", "grid 1"])],
)
def test_each_of_several_codebooks_is_shown(name: str, titles: list[str]) -> None:
    pixels = np.random.default_rng(0).integers(256, size=(6, 16, 16, 3), dtype=np.uint8)
    book = codes.codebooks(several(name), data.ImageSet(pixels, None))
    assert [part["title"] for part in book["books"]] == titles
    assert all(any(line.startswith(title) for line in book["diagnosis"]) for title in titles)
    assert all(part["rows"] and part["histogram"] and part["atlas"].uri for part in book["books"])


@pytest.mark.parametrize(("name", "books"), [("vqvae", 3), ("vqvae2", 2)])
def test_reconstructions_have_a_map_of_each_codebook(name: str, books: int) -> None:
    pixels = np.random.default_rng(0).integers(256, size=(4, 13, 10, 3), dtype=np.uint8)
    picture = codes.rebuilt(several(name), data.ImageSet(pixels, None))
    shown = Image.open(io.BytesIO(base64.b64decode(picture.uri.split(",")[1])))
    assert round(shown.height / (shown.width / 4 * 13 / 10)) == 3 + books
    assert f"of each of {books} codebooks" in picture.note


def test_the_atlas_of_a_depth_changes_that_depth_alone() -> None:
    tokenizer = several("vqvae")
    patches = codes.code_patches(tokenizer, 1, np.array([5, 0]), others=(2, 5, 7))
    for row, code in zip(patches, (5, 0), strict=True):
        symbols = torch.tensor([2, code, 7]).expand(1, 5, 5, 3)
        whole = tokenizer.decode(symbols, (20, 20))[0].numpy()
        # The middle one of five places along each side.
        assert np.array_equal(row, whole[8:12, 8:12])


def test_a_code_map_has_a_colour_for_each_code() -> None:
    symbols = np.array([[[0, 1], [2, 0]]])
    shown = codes.code_map(symbols, 3, 2, (4, 3))
    assert shown.shape == (1, 4, 3, 3)
    assert np.array_equal(shown[0, 0, 0], shown[0, 1, 1])
    assert len({tuple(shown[0, y, x]) for y, x in ((0, 0), (0, 2), (2, 0))}) == 3


def test_images_are_taken_in_pieces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = data.load(configs.load_recipe("digits").data, "test")

    class Pieces:
        def __len__(self) -> int:
            return len(whole.images)

        def __getitem__(self, part: slice) -> np.ndarray:
            assert part.stop is not None
            return whole.images[part]

        def __array__(self, *arguments: Any, **options: Any) -> np.ndarray:
            raise AssertionError("all images at once")

    pieces = data.ImageSet(whole.images, name="pieces", split="test")
    object.__setattr__(pieces, "images", Pieces())
    monkeypatch.setattr(page.data, "load", lambda config, split: pieces)
    text = write("digits-codes", tmp_path, samples=12)
    assert {"Completions", "Reconstructions", "Codebook"} <= set(Seen(text).texts)
