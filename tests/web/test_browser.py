"""The page in a real browser: what it shows is what Python gives, symbol for symbol.

It takes the Chromium of the system, which TESSELLA_CHROMIUM can name, and keeps its screenshots
where TESSELLA_SCREENSHOTS says.
"""

from __future__ import annotations

import math
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from served_page import Served, png

import tessella as ts
from tessella.pipeline.kept_twin import exact_twin_of

api = pytest.importorskip("playwright.sync_api", reason="the page is driven by playwright")

CHROMIUM = os.environ.get("TESSELLA_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
PATIENCE = 60_000
"""Milliseconds: machines that run tests are slow at times."""

PHONE = {"width": 390, "height": 780}
DESKTOP = {"width": 1200, "height": 800}

pytestmark = pytest.mark.skipif(
    not CHROMIUM, reason="there is no Chromium: install it, or name it with TESSELLA_CHROMIUM"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser without a window."""
    # Its sandbox does not start for root, as which containers run.
    options = ["--disable-gpu"]
    if os.geteuid() == 0:
        options.append("--no-sandbox")
    api.expect.set_options(timeout=PATIENCE)
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield found
        found.close()


class Page:
    """A page, and what a person does on it."""

    def __init__(self, page: Any, served: Served) -> None:
        self.page = page
        self.served = served
        page.goto(served.address)
        api.expect(page.locator("#facts")).not_to_be_empty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.page, name)

    def choose(self, model: str, tab: str) -> Any:
        """Choose a model and a tab; returns the panel."""
        self.page.select_option("#model", label=model)
        self.page.click(f"#tab-{tab}")
        return self.page.locator(f"#panel-{tab}")

    def pixels(self, canvas: Any, channels: int = 1) -> np.ndarray:
        """What a canvas shows, ``uint8 [height, width, channels]``."""
        height, width, values = canvas.evaluate(
            "c => [c.height, c.width, [...c.getContext('2d').getImageData(0, 0, c.width, c.height)"
            ".data]]"
        )
        shown = np.array(values, dtype=np.uint8).reshape(height, width, 4)
        assert (shown[:, :, 3] == 255).all()
        if channels == 1:
            assert (shown[:, :, 0] == shown[:, :, 1]).all()
            assert (shown[:, :, 0] == shown[:, :, 2]).all()
        return shown[:, :, :channels]

    def middle_of(self, stack: Any, row: int, column: int, height: int, width: int) -> Any:
        """The place on the page of a place of a grid."""
        stack.scroll_into_view_if_needed()
        box = stack.bounding_box()
        x = box["x"] + box["width"] * (column + 0.5) / width
        y = box["y"] + box["height"] * (row + 0.5) / height
        return x, y

    def real_image(self, panel: Any, number: int) -> None:
        """Take a real test image as the picture."""
        name = panel.locator(".source span.quiet")
        for _ in range(30):
            panel.locator("button.real").click()
            if name.text_content() == f"test image {number}":
                return
        raise AssertionError(f"there is no test image {number}")

    def shot(self, folder: Path, name: str) -> None:
        """Keep a picture of the whole page."""
        self.page.screenshot(path=str(folder / f"{name}.png"), full_page=True)


def is_fault(line: Any) -> bool:
    """Whether a line of the console is one; reading canvases often, as the tests do, is none."""
    return line.type in ("error", "warning") and "willReadFrequently" not in line.text


@pytest.fixture
def page(request: pytest.FixtureRequest, browser: Any, served: Served) -> Iterator[Page]:
    """A new page, on which nothing may go wrong; parameters are its size and colour scheme."""
    size, scheme = getattr(request, "param", (DESKTOP, "light"))
    context = browser.new_context(viewport=size, color_scheme=scheme, accept_downloads=True)
    context.set_default_timeout(PATIENCE)
    inner = context.new_page()
    faults: list[str] = []
    inner.on("pageerror", lambda error: faults.append(str(error)))
    inner.on("console", lambda line: faults.append(line.text) if is_fault(line) else None)
    asked: set[str] = set()
    inner.on("request", lambda sent: asked.add(sent.url.split("/")[2]))
    made = Page(inner, served)
    made.faults = faults
    yield made
    context.close()
    # A refused request is a line in the console as well; tests that provoke one clear the list.
    assert faults == []
    assert asked == {served.address.removeprefix("http://")}, "nothing comes from elsewhere"


@pytest.mark.parametrize("name", ["digits", "digits-codes"])
def test_it_draws_what_python_draws(
    page: Page, served: Served, screenshots: Path, name: str
) -> None:
    panel = page.choose(name, "draw")
    panel.locator("[name=seed]").fill("41")
    panel.locator("[name=n]").fill("3")
    panel.locator("button.main").click()
    api.expect(panel.locator(".gallery")).to_have_attribute("data-done", "true")
    canvases = panel.locator(".gallery canvas")
    assert canvases.count() == 3
    for number in range(3):
        wanted = served.models[name].sample(1, seed=41 + number)[0]
        assert np.array_equal(page.pixels(canvases.nth(number)), wanted)
    # The same in Python, as the page says it.
    panel.get_by_role("button", name="Image with seed 42").click()
    assert f'ts.load("{name}").sample(1, seed=42)' in panel.locator("code").text_content()
    page.shot(screenshots, f"draw-{name}")


def test_rules_reach_the_model(page: Page, served: Served) -> None:
    panel = page.choose("classes", "draw")
    panel.locator("[name=seed]").fill("18446744073709551615")
    panel.locator("[name=n]").fill("1")
    panel.locator("[name=class_label]").select_option(label="2")
    panel.locator("[name=guidance]").fill("2.5")
    panel.locator("[name=temperature]").fill("0.8")
    panel.locator("summary").click()
    panel.locator("[name=top_k]").fill("40")
    panel.locator("[name=top_p]").fill("0.95")
    panel.locator("button.main").click()
    api.expect(panel.locator(".gallery")).to_have_attribute("data-done", "true")
    wanted = served.models["classes"].sample(
        1,
        seed=(1 << 64) - 1,
        cond=torch.tensor([2]),
        guidance=2.5,
        temperature=0.8,
        top_k=40,
        top_p=0.95,
    )[0]
    assert np.array_equal(page.pixels(panel.locator(".gallery canvas"), 3), wanted)


def test_a_class_is_drawn_in_colour(page: Page, served: Served, screenshots: Path) -> None:
    panel = page.choose("cifar10-codes", "draw")
    panel.locator("[name=class_label]").select_option(label="horse")
    panel.locator("[name=guidance]").fill("1.5")
    panel.locator("[name=seed]").fill("4")
    panel.locator("[name=n]").fill("8")
    panel.locator("summary").click()
    panel.locator("[name=top_p]").fill("0.95")
    panel.locator("button.main").click()
    api.expect(panel.locator(".gallery")).to_have_attribute("data-done", "true")
    wanted = served.models["cifar10-codes"].sample(
        8, seed=4, cond=torch.full((8,), 7), guidance=1.5, top_p=0.95
    )
    canvases = panel.locator(".gallery canvas")
    for number in range(8):
        assert np.array_equal(page.pixels(canvases.nth(number), 3), wanted[number])
    panel.get_by_role("button", name="Image with seed 6").click()
    page.shot(screenshots, "draw-cifar10-codes")


def test_rows_show_as_they_come_and_stop_when_asked(
    page: Page, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = served.models["digits"]
    may_go_on = threading.Event()
    has_ended = threading.Event()

    def slowly(*args: Any, **options: Any) -> Iterator[Any]:
        try:
            for placed, symbols in type(model).stream_symbols(model, *args, **options):
                yield placed, symbols
                if placed == 24:
                    assert may_go_on.wait(PATIENCE / 1000)
        finally:
            has_ended.set()

    monkeypatch.setattr(model, "stream_symbols", slowly)
    panel = page.choose("digits", "draw")
    panel.locator("[name=n]").fill("1")
    panel.locator("button.main").click()
    api.expect(panel.locator(".status")).to_have_text("24 of 64 symbols")
    shown = page.pixels(panel.locator(".gallery canvas"))
    wanted = model.sample(1, seed=0)[0].numpy()
    assert np.array_equal(shown[:3], wanted[:3])
    assert not shown[3:].any()
    # Nothing waits for the images any more, so the model stops, in the middle.
    panel.get_by_role("button", name="Stop").click()
    api.expect(panel.locator(".status")).to_have_text("stopped")
    may_go_on.set()
    assert has_ended.wait(PATIENCE / 1000)


@pytest.mark.parametrize("name", ["digits", "digits-codes"])
def test_it_completes_what_python_completes(
    page: Page, served: Served, digits: np.ndarray, screenshots: Path, name: str
) -> None:
    panel = page.choose(name, "complete")
    page.real_image(panel, 3)
    panel.get_by_role("button", name="Upper half").click()
    panel.locator("[name=size]").fill("1")
    stack = panel.locator(".stack")
    # A line of pixels that are drawn anew, with the pointer pressed; then one that is kept.
    page.mouse.move(*page.middle_of(stack, 1, 2, 8, 8))
    page.mouse.down()
    page.mouse.move(*page.middle_of(stack, 1, 5, 8, 8))
    page.mouse.up()
    panel.get_by_role("radio", name="keep").check()
    for column in (2, 3):
        for row in (6, 7):
            page.mouse.click(*page.middle_of(stack, row, column, 8, 8))
    known = np.zeros((8, 8), dtype=bool)
    known[:4] = True
    known[1, 2:6] = False
    known[6:8, 2:4] = True
    veil = panel.locator(".veil").evaluate(
        "c => { const p = c.getContext('2d'); const s = c.width / 8; const seen = [];"
        "for (let y = 0; y < 8; y++) for (let x = 0; x < 8; x++)"
        " seen.push(p.getImageData((x + .5) * s, (y + .5) * s, 1, 1).data[3]); return seen; }"
    )
    assert np.array_equal(np.array(veil).reshape(8, 8) == 0, known)
    panel.locator("[name=seed]").fill("6")
    panel.locator("[name=n]").fill("4")
    panel.locator("button.main").click()
    api.expect(panel.locator(".gallery")).to_have_attribute("data-done", "true")
    repeated = np.repeat(digits[3:4], 4, axis=0)
    wanted = served.models[name].complete(repeated, torch.from_numpy(known), seed=6)
    canvases = panel.locator(".gallery canvas")
    for number in range(4):
        assert np.array_equal(page.pixels(canvases.nth(number)), wanted[number])
    page.shot(screenshots, f"complete-{name}")


def test_the_brush_works_with_the_keyboard(page: Page, digits: np.ndarray) -> None:
    panel = page.choose("digits", "complete")
    page.real_image(panel, 0)
    panel.get_by_role("button", name="All").click()
    panel.locator("[name=size]").fill("1")
    panel.locator(".stack").focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    api.expect(panel.locator(".place")).to_have_text("row 2, column 3: kept")
    page.keyboard.press("Space")
    api.expect(panel.locator(".place")).to_have_text("row 2, column 3: drawn anew")


def test_it_shows_the_bits_of_an_image_and_what_was_expected(
    page: Page, served: Served, digits: np.ndarray, screenshots: Path
) -> None:
    model = served.models["digits"]
    panel = page.choose("digits", "bits")
    page.real_image(panel, 2)
    symbols = model.encode(digits[2:3])
    places = (-model.prior.log_prob(symbols, reduce=False) / math.log(2))[0, :, :, 0].detach()
    api.expect(panel.locator(".status")).to_contain_text(f"{places.sum():.1f} bits: 64 pixel")
    # The brightest place is the most surprising one.
    heat = page.pixels(panel.locator(".heat"), 3).sum(axis=2)
    assert heat.argmax() == int(places.argmax())
    stack = panel.locator(".stack")
    page.mouse.move(*page.middle_of(stack, 5, 4, 8, 8))
    level = int(symbols[0, 5, 4, 0])
    bits = float(places[5, 4])
    words = f"evel {level} was expected with {100 * 2**-bits:.1f}\u00a0%, which is {bits:.2f} bits"
    api.expect(panel.locator(".chart figcaption")).to_contain_text(words)
    assert panel.locator(".chart svg > rect.bar").count() == 17
    page.shot(screenshots, "bits-digits")
    # The same with the keyboard: one to the right.
    stack.focus()
    page.keyboard.press("ArrowRight")
    api.expect(panel.locator(".expected > p")).to_have_text("Row 6, column 6")


def test_bits_of_codes_come_with_the_codes_that_were_expected(
    page: Page, served: Served, digits: np.ndarray, screenshots: Path
) -> None:
    model = served.models["digits-codes"]
    panel = page.choose("digits-codes", "bits")
    page.real_image(panel, 5)
    bits = -model.log_prob(digits[5:6]).item() / math.log(2)
    api.expect(panel.locator(".status")).to_contain_text(f"{bits:.1f} bits: 16 codes")
    stack = panel.locator(".stack")
    page.mouse.move(*page.middle_of(stack, 2, 1, 4, 4))
    api.expect(panel.locator(".expected > p")).to_have_text("Row 3, column 2")
    symbols = model.encode(digits[5:6])
    with torch.no_grad():
        table = model.prior.distribution(symbols).table(symbols)[0, 2, 1, 0]
    likeliest = int(table.argmax())
    share = 100 * float(table[likeliest].exp())
    first = panel.locator(".patches figcaption").first
    api.expect(first).to_have_text(f"code {likeliest} {share:.1f}\u00a0%")
    page.shot(screenshots, "bits-digits-codes")


def test_a_picture_is_looked_at_in_tiles(page: Page, digits: np.ndarray, tmp_path: Path) -> None:
    row = np.concatenate([digits[0], digits[1]], axis=1)
    (tmp_path / "four.png").write_bytes(png(np.concatenate([row, row], axis=0)))
    panel = page.choose("digits", "bits")
    panel.locator(".source input").set_input_files(str(tmp_path / "four.png"))
    api.expect(panel.locator(".source span.quiet")).to_have_text("four.png")
    api.expect(panel.locator(".status")).to_contain_text("64 pixel values")
    panel.locator("[name=tiles]").select_option(label="16×16 pixels")
    api.expect(panel.locator(".status")).to_contain_text("256 pixel values")
    assert page.pixels(panel.locator(".heat"), 3).shape == (16, 16, 3)
    shown = page.pixels(panel.locator(".picture"))
    assert np.array_equal(shown[:8, 8:], digits[1])


def test_codes_change_with_a_click(
    page: Page, served: Served, digits: np.ndarray, screenshots: Path
) -> None:
    tokenizer = served.models["digits-codes"].tokenizer
    panel = page.choose("digits-codes", "codes")
    page.real_image(panel, 4)
    codes = tokenizer.encode(digits[4:5])
    api.expect(panel.locator(".decoded-name")).to_contain_text("dB")
    decoded = panel.locator(".decoded")
    before = tokenizer.decode(codes)[0].numpy()
    assert np.array_equal(page.pixels(decoded), before)
    page.mouse.click(*page.middle_of(panel.locator(".trio .stack"), 1, 2, 4, 4))
    place = panel.locator(".place")
    api.expect(place).to_have_text(f"row 2, column 3: code {codes[0, 1, 2, 0]}")
    wanted = 37
    assert codes[0, 1, 2, 0] != wanted
    page.mouse.click(
        *page.middle_of(panel.locator(".atlas .stack"), wanted // 16, wanted % 16, 4, 16)
    )
    api.expect(place).to_have_text(f"row 2, column 3: code {wanted}")
    api.expect(panel.locator(".status")).to_contain_text("1 code changed")
    codes[0, 1, 2, 0] = wanted
    after = tokenizer.decode(codes)[0].numpy()
    assert not np.array_equal(after, before)
    _wait_for_pixels(page, decoded, after)
    page.shot(screenshots, "codes-digits-codes")
    panel.get_by_role("button", name="Undo").click()
    _wait_for_pixels(page, decoded, before)


def _wait_for_pixels(page: Page, canvas: Any, wanted: np.ndarray, channels: int = 1) -> None:
    """Wait until a canvas shows an image."""
    for _ in range(PATIENCE // 100):
        if np.array_equal(page.pixels(canvas, channels), wanted):
            return
        page.wait_for_timeout(100)
    raise AssertionError("the canvas shows something else")


def test_codes_of_a_large_codebook_are_shown_where_they_are_asked_for(
    page: Page, served: Served, tmp_path: Path, screenshots: Path
) -> None:
    tokenizer = served.models["tokenizer"]
    colours = np.random.default_rng(2).integers(256, size=(16, 16, 3), dtype=np.uint8)
    (tmp_path / "noise.png").write_bytes(png(colours))
    panel = page.choose("tokenizer", "codes")
    # It draws no picture, so the page says where one comes from.
    api.expect(panel.locator(".status")).to_contain_text("Open an image file")
    api.expect(page.locator("#facts")).to_contain_text("A tokenizer alone draws nothing")
    panel.locator(".source input").set_input_files(str(tmp_path / "noise.png"))
    extent = panel.locator(".extent")
    api.expect(extent).to_have_text("· codes 0 to 1023 of 3000")
    codes = tokenizer.encode(colours[None])
    assert codes.max() >= 1024, "some code of the picture must lie beyond the first sheet"
    # Every place of the map shows what its code decodes to; one without would be transparent.
    empty = panel.locator(".map").evaluate(
        "c => { const side = c.width / 4; const p = c.getContext('2d'); let count = 0;"
        "for (let y = 0; y < 4; y++) for (let x = 0; x < 4; x++)"
        " if (!p.getImageData(x * side + 3, y * side + 3, 1, 1).data[3]) count++; return count; }"
    )
    assert empty == 0
    panel.locator("[name=from]").fill("2500")
    panel.locator("[name=from]").press("Enter")
    api.expect(extent).to_have_text("· codes 2500 to 2999 of 3000")
    stack = panel.locator(".atlas .stack")
    page.mouse.click(*page.middle_of(stack, 1, 5, 16, 32))
    api.expect(panel.locator(".place")).to_have_text("row 1, column 1: code 2537")
    codes[0, 0, 0, 0] = 2537
    _wait_for_pixels(page, panel.locator(".decoded"), tokenizer.decode(codes)[0].numpy(), 3)
    page.shot(screenshots, "codes-tokenizer")


def test_another_model_takes_the_file_of_an_open_tab(
    page: Page, digits: np.ndarray, tmp_path: Path
) -> None:
    (tmp_path / "seven.png").write_bytes(png(digits[7]))
    panel = page.choose("tokenizer", "codes")
    panel.locator(".source input").set_input_files(str(tmp_path / "seven.png"))
    api.expect(panel.locator(".decoded-name")).to_contain_text("dB")
    # This model makes no codes, and must not be asked for any: that would be a fault of the page.
    page.select_option("#model", label="digits")
    api.expect(page.locator("#panel-draw")).to_be_visible()
    page.click("#tab-bits")
    bits = page.locator("#panel-bits")
    api.expect(bits.locator(".status")).to_contain_text("64 pixel values")
    assert np.array_equal(page.pixels(bits.locator(".picture")), digits[7])


def test_a_vae_draws_and_says_why_it_does_nothing_else(page: Page, served: Served) -> None:
    panel = page.choose("vae", "draw")
    api.expect(page.get_by_role("tab")).to_have_text(["Draw"])
    api.expect(page.locator("#facts")).to_contain_text("A VAE only draws")
    panel.locator("[name=n]").fill("2")
    panel.locator("button.main").click()
    api.expect(panel.locator(".gallery")).to_have_attribute("data-done", "true")
    wanted = served.models["vae"].sample(2, 0)[1]
    assert np.array_equal(page.pixels(panel.locator(".gallery canvas").nth(1), 3), wanted)


def test_python_loads_the_run_that_was_named(page: Page, runs: list[str]) -> None:
    # The page calls it "classes", and such a name could be that of a model that ships.
    panel = page.choose("classes", "draw")
    panel.locator("[name=n]").fill("1")
    panel.locator("button.main").click()
    api.expect(panel.locator(".gallery")).to_have_attribute("data-done", "true")
    panel.get_by_role("button", name="Image with seed 0").click()
    (run,) = [name for name in runs if name.endswith("classes")]
    assert f'ts.load("{run}").sample(1, seed=0)' in panel.locator("code").text_content()


def test_a_picture_is_awaited_with_words(
    page: Page, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = served.models["classes"]
    may_go_on = threading.Event()

    def slowly(*args: Any, **options: Any) -> Iterator[Any]:
        for placed, symbols in type(model).stream_symbols(model, *args, **options):
            yield placed, symbols
            if placed == 18:
                assert may_go_on.wait(PATIENCE / 1000)

    monkeypatch.setattr(model, "stream_symbols", slowly)
    panel = page.choose("classes", "complete")
    name = panel.locator(".source span.quiet")
    api.expect(name).to_have_text("drawing one: 18 of 90 symbols")
    panel.locator("button.main").click()
    api.expect(panel.locator(".status")).to_have_text("there is no picture to complete yet")
    may_go_on.set()
    api.expect(name).to_have_text("drawn with seed 1000")


def test_a_grey_picture_of_the_page_is_compressed_as_grey(page: Page, digits: np.ndarray) -> None:
    pytest.importorskip("constriction", reason="compressed files need the extra compress")
    page.real_image(page.choose("digits", "bits"), 1)
    panel = page.choose("digits", "compress")
    panel.locator("[name=fit]").uncheck()
    panel.get_by_role("button", name="Use the picture of the other tabs").click()
    api.expect(panel.locator(".status")).to_contain_text("8×8×1, ")


def test_a_compressed_file_can_be_saved_and_holds_the_picture(
    page: Page, served: Served, digits: np.ndarray, tmp_path: Path, screenshots: Path
) -> None:
    pytest.importorskip("constriction", reason="compressed files need the extra compress")
    (tmp_path / "six.png").write_bytes(png(digits[6]))
    panel = page.choose("digits", "compress")
    panel.locator("[name=file]").set_input_files(str(tmp_path / "six.png"))
    save = panel.get_by_role("button", name="Save six.tsl")
    api.expect(save).to_be_visible()
    with page.expect_download() as download:
        save.click()
    packed = Path(download.value.path()).read_bytes()
    assert panel.locator("tr.ours td").nth(1).text_content() == str(len(packed))
    twin = exact_twin_of("digits", served.models["digits"], print)
    (restored,) = ts.decompress(packed, twin)
    assert np.array_equal(restored, digits[6])
    page.shot(screenshots, "compress-digits")


def test_a_mistake_is_shown_in_the_words_of_the_command_line(page: Page) -> None:
    panel = page.choose("digits", "draw")
    panel.locator("[name=seed]").fill("99999999999999999999")
    panel.locator("button.main").click()
    api.expect(page.get_by_role("alert")).to_have_text(
        "seed must be an integer in 0..18446744073709551612, got 99999999999999999999"
    )
    page.faults.clear()


def test_a_busy_server_is_asked_again(page: Page, served: Served) -> None:
    turns = []

    def first_busy(route: Any) -> None:
        turns.append(route.request.url)
        if len(turns) == 1:
            route.fulfill(status=503, headers={"Retry-After": "1"}, body='{"error": "busy"}')
        else:
            route.continue_()

    page.route("**/api/draw", first_busy)
    panel = page.choose("digits", "draw")
    panel.locator("button.main").click()
    api.expect(panel.locator(".status")).to_have_text("the server is busy; again in 1 s")
    api.expect(panel.locator(".gallery")).to_have_attribute("data-done", "true")
    assert len(turns) == 2
    page.faults.clear()


@pytest.mark.parametrize(
    "page",
    [(PHONE, "light"), (PHONE, "dark"), (DESKTOP, "dark")],
    indirect=True,
    ids=["phone-light", "phone-dark", "desktop-dark"],
)
def test_it_fits_every_screen(
    page: Page, request: pytest.FixtureRequest, screenshots: Path
) -> None:
    page.choose("digits-codes", "draw")
    for name in ("draw", "complete", "bits", "codes", "compress"):
        page.click(f"#tab-{name}")
        panel = page.locator(f"#panel-{name}")
        api.expect(panel).to_be_visible()
        if name in ("draw", "complete"):
            panel.locator("button.main").click()
            api.expect(panel.locator(".gallery")).to_have_attribute("data-done", "true")
        if name == "bits":
            api.expect(panel.locator(".status")).to_contain_text("16 codes")
            panel.locator(".stack").click()
            api.expect(panel.locator(".patches")).to_be_visible()
        if name == "codes":
            api.expect(panel.locator(".decoded-name")).to_contain_text("dB")
            api.expect(panel.locator(".atlas")).to_be_visible()
            api.expect(panel.locator(".extent")).to_have_text("")
        width = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        assert width[0] <= width[1], f"{name} is wider than the screen"
        page.shot(screenshots, f"{name}-{request.node.callspec.id}")


def test_everything_has_a_name_for_readers_of_screens(page: Page) -> None:
    page.choose("classes", "draw")
    nameless = page.evaluate(
        "[...document.querySelectorAll('button, input, select, a, [role=application]')]"
        ".filter(e => !(e.textContent.trim() || e.labels?.length || e.getAttribute('aria-label')"
        " || e.getAttribute('aria-labelledby'))).map(e => e.outerHTML)"
    )
    assert nameless == []
    # Tabs are one stop of the tab key, and the arrow keys go from one to the next.
    page.locator("#tab-draw").focus()
    page.keyboard.press("ArrowRight")
    api.expect(page.locator("#tab-complete")).to_be_focused()
    api.expect(page.locator("#tab-complete")).to_have_attribute("aria-selected", "true")
    api.expect(page.locator("#panel-draw")).to_be_hidden()
