// The codebook: a sheet of what its codes decode to, from which one is chosen.

import { findPatches, patchCanvas } from "./atlas.js";
import { mark, placeAt, stepped } from "./arrays.js";
import { attempt } from "./state.js";

const SHEET_SIDE = 1024; // pixels of a row of the sheet, about
const MOST_SHOWN = 1024; // codes of a sheet
const MOST_REQUESTS = 16; // that fill a sheet: large patches take long, so fewer are shown

/** `put(code)` is called when a code is chosen, `from` is the field for the first code that is shown. */
export function startCodebook(figure, from, put) {
  const stack = figure.querySelector(".stack");
  const canvas = stack.querySelector("canvas");
  const cursor = stack.querySelector(".cursor");
  const codeName = figure.querySelector(".code-name");
  const extent = figure.querySelector(".extent");
  const fromField = from.closest("label");
  let book;
  let channels = 1;
  let first = 0;
  let code = 0;
  let turn = 0; // counts what was shown, so that late answers find that they are late

  const columns = () => (book.codes <= 256 ? 16 : 32);
  const shown = () => Math.min(book.codes - first, MOST_SHOWN, MOST_REQUESTS * book.most_patches);
  const rows = () => Math.ceil(shown() / columns());

  function paintSheet() {
    // A line of the page's colour between codes.
    const side = Math.max(Math.min(book.side, 64), Math.floor(SHEET_SIDE / columns()));
    canvas.width = columns() * side;
    canvas.height = rows() * side;
    const context = canvas.getContext("2d");
    // Large patches are made smaller, which needs smoothing; small ones stay sharp.
    context.imageSmoothingEnabled = book.side > side;
    for (let i = 0; i < shown(); i++) {
      const patch = patchCanvas(book, first + i, channels);
      if (!patch) continue;
      const x = (i % columns()) * side;
      const y = Math.floor(i / columns()) * side;
      context.drawImage(patch, x + 1, y + 1, side - 2, side - 2);
    }
  }

  function describe(count) {
    const total = shown();
    const isWhole = total === book.codes;
    if (count < total) extent.textContent = `· decoding: ${count} of ${total}`;
    else extent.textContent = isWhole ? "" : `· codes ${first} to ${first + total - 1} of ${book.codes}`;
  }

  async function fill(model, number) {
    turn += 1;
    const mine = turn;
    figure.hidden = false;
    const codes = Array.from({ length: shown() }, (_, i) => first + i);
    paintSheet();
    choose(code);
    describe(codes.filter((value) => book.patches.has(value)).length);
    await findPatches(model, number, codes, (count) => {
      if (mine !== turn) return false;
      paintSheet();
      describe(count);
      return true;
    });
  }

  let refill = () => undefined;

  /** Show a codebook, from its first code on. */
  function show(model, books, number) {
    book = books[number];
    channels = model.channels;
    first = 0;
    from.value = "0";
    from.max = String(book.codes - 1);
    fromField.hidden = shown() === book.codes;
    from.step = String(shown());
    refill = () => fill(model, number);
    return refill();
  }

  /** Mark a code as the chosen one. */
  function choose(value) {
    code = value;
    codeName.textContent = `code ${value}`;
    if (!book) return;
    const place = value - first;
    if (place >= 0 && place < shown()) {
      mark(cursor, Math.floor(place / columns()), place % columns(), rows(), columns());
    } else {
      cursor.hidden = true;
    }
  }

  function forget() {
    turn += 1;
    book = undefined;
    figure.hidden = true;
    fromField.hidden = true;
  }

  from.addEventListener("change", () => {
    if (!book) return;
    first = Math.max(0, Math.min(book.codes - 1, Math.floor(Number(from.value)) || 0));
    from.value = String(first);
    attempt(refill);
  });
  stack.addEventListener("pointerdown", (event) => {
    if (!book) return;
    const [row, column] = placeAt(event, stack, rows(), columns());
    const place = row * columns() + column;
    if (place >= shown()) return;
    choose(first + place);
    attempt(() => put(first + place));
  });
  stack.addEventListener("keydown", (event) => {
    if (!book) return;
    // From a code that is not on the sheet, steps begin at its first.
    const place = code >= first && code < first + shown() ? code - first : 0;
    const next = stepped(event, [Math.floor(place / columns()), place % columns()], rows(), columns());
    if (next) choose(first + Math.min(shown() - 1, next[0] * columns() + next[1]));
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      attempt(() => put(code));
    }
  });

  return { show, choose, forget };
}
