// Codes: a picture through the tokenizer and back; codes are changed with a click.

import { findBooks, findPatches, patchCanvas } from "./atlas.js";
import { fromBase64, integers, mark, paint, placeAt, stepped, toBase64 } from "./arrays.js";
import { startCodebook } from "./codebook.js";
import { ask } from "./server.js";
import { ensurePicture, sourceIn } from "./source.js";
import { attempt, element, on, state } from "./state.js";
import { gridsInWords } from "./words.js";

const MAP_SIDE = 512; // pixels of the map along its longer side, about

export function startCodes(panel) {
  const form = panel.querySelector("form");
  sourceIn(panel.querySelector(".source"));
  const status = panel.querySelector(".status");
  const trio = panel.querySelector(".trio");
  const picture = panel.querySelector("canvas.picture");
  const decoded = panel.querySelector("canvas.decoded");
  const decodedName = panel.querySelector(".decoded-name");
  const mapStack = panel.querySelector(".trio .stack");
  const map = mapStack.querySelector("canvas");
  const mapCursor = mapStack.querySelector(".cursor");
  const placeName = panel.querySelector(".place");
  const codebook = startCodebook(panel.querySelector(".atlas"), form.elements.from, put);
  const undo = panel.querySelector(".undo");
  const reset = panel.querySelector(".reset");
  let books = [];
  let grids = [];
  let symbols = []; // Int32Array of each grid
  let original = [];
  let history = [];
  let at = [0, 0];
  let shownPicture;
  let quality = "";

  const number = () => Number(form.elements.book.value) || 0;
  const book = () => books[number()];
  const grid = () => grids[book().grid];
  const index = () => (at[0] * grid().width + at[1]) * grid().depth + book().depth;

  async function encode() {
    const { model, picture: given } = state;
    // While another model is taken, the tab can still be open that it has no use for.
    if (panel.hidden || !model.abilities.includes("codes")) return;
    if (given && given === shownPicture) return;
    if (!given) {
      const draws = model.abilities.includes("draw");
      status.textContent = draws ? "" : "Open an image file, to see its codes: this model draws none by itself.";
      return;
    }
    shownPicture = given;
    const { tiles } = given;
    paint(picture, given.pixels, model.height * tiles, model.width * tiles, model.channels);
    status.textContent = "waiting for the model";
    const found = await findBooks(model);
    const asked = { model: model.name, image: toBase64(given.pixels), tiles };
    const answer = await ask("/api/codes", asked);
    // Another picture, or another model, may have been chosen meanwhile.
    if (given !== shownPicture) return;
    books = found;
    grids = answer.grids;
    symbols = answer.symbols.map(integers);
    original = symbols.map((part) => part.slice());
    history = [];
    quality = answer.psnr === null ? "exact" : `${answer.psnr.toFixed(1)} dB`;
    trio.hidden = false;
    showDecoded(answer.image);
    at = [0, 0];
    renew();
    await showCodebook();
  }

  /** The patches of the map first, since there are few; then those of the codebook. */
  async function showCodebook() {
    const { model } = state;
    const given = shownPicture;
    const which = number();
    const { depth } = grid();
    const values = symbols[book().grid].filter((_, i) => i % depth === book().depth);
    const isWanted = () => given === shownPicture && which === number();
    // What is there is shown; no more is asked for once another picture or codebook is looked at.
    await findPatches(model, which, [...values], () => {
      if (isWanted()) showMap();
      return isWanted();
    });
    if (!isWanted()) return;
    await codebook.show(model, books, which);
  }

  async function decode() {
    const asked = { model: state.model.name, symbols: symbols.map(toBase64), tiles: state.picture.tiles };
    const answer = await ask("/api/codes", asked);
    showDecoded(answer.image);
  }

  function showDecoded(text) {
    const { model, picture: given } = state;
    const pixels = fromBase64(text);
    paint(decoded, pixels, model.height * given.tiles, model.width * given.tiles, model.channels);
  }

  function renew() {
    const changed = symbols.reduce(
      (sum, part, i) => sum + part.reduce((count, value, j) => count + (value !== original[i][j]), 0), 0);
    undo.disabled = !history.length;
    reset.disabled = !changed;
    const { model, picture: given } = state;
    const bits = grids.reduce((sum, part) => sum + part.height * part.width * part.depth * Math.log2(part.levels), 0);
    const raw = model.height * model.width * model.channels * given.tiles ** 2 * 8;
    const most = raw.toLocaleString("en");
    status.textContent = `${gridsInWords(grids)}: ${Math.round(bits).toLocaleString("en")} bits instead of ${most} bits of pixels. `
      + (changed ? `${changed} ${changed === 1 ? "code" : "codes"} changed.` : `Reconstruction: ${quality}.`);
    decodedName.textContent = changed ? "decoded, changed" : `decoded, ${quality}`;
    showMap();
  }

  /** Each place of the map shows what its code decodes to among its like. */
  function showMap() {
    const { height, width, depth } = grid();
    const { channels } = state.model;
    const part = symbols[book().grid];
    const side = Math.max(book().side, Math.floor(MAP_SIDE / Math.max(height, width)));
    map.width = width * side;
    map.height = height * side;
    const context = map.getContext("2d");
    context.imageSmoothingEnabled = false;
    for (let place = 0; place < height * width; place++) {
      const value = part[place * depth + book().depth];
      const x = (place % width) * side;
      const y = Math.floor(place / width) * side;
      const patch = patchCanvas(book(), value, channels);
      if (patch) context.drawImage(patch, x + 1, y + 1, side - 2, side - 2);
      label(context, String(value), x, y, side);
    }
    choosePlace(at);
  }

  function choosePlace(place) {
    at = place;
    const { height, width } = grid();
    mark(mapCursor, at[0], at[1], height, width);
    const value = symbols[book().grid][index()];
    placeName.textContent = `row ${at[0] + 1}, column ${at[1] + 1}: code ${value}`;
    codebook.choose(value);
  }

  async function put(value) {
    const part = symbols[book().grid];
    const place = index();
    if (value >= grid().levels || part[place] === value) return;
    history.push([book().grid, place, part[place]]);
    part[place] = value;
    renew();
    await decode();
  }

  mapStack.addEventListener("pointerdown", (event) => {
    if (!grids.length) return;
    choosePlace(placeAt(event, mapStack, grid().height, grid().width));
  });
  mapStack.addEventListener("keydown", (event) => {
    if (!grids.length) return;
    const next = stepped(event, at, grid().height, grid().width);
    if (next) choosePlace(next);
  });
  undo.addEventListener("click", () => attempt(async () => {
    const [which, place, value] = history.pop();
    symbols[which][place] = value;
    renew();
    await decode();
  }));
  reset.addEventListener("click", () => attempt(async () => {
    symbols = original.map((part) => part.slice());
    history = [];
    renew();
    await decode();
  }));
  form.elements.book.addEventListener("change", () => {
    if (!grids.length) return;
    at = [0, 0];
    codebook.forget();
    renew();
    attempt(showCodebook);
  });
  form.addEventListener("submit", (event) => event.preventDefault());

  on("model", () => {
    shownPicture = undefined;
    books = [];
    grids = [];
    history = [];
    symbols = [];
    codebook.forget();
    trio.hidden = true;
    mapCursor.hidden = true;
    status.textContent = "";
    undo.disabled = true;
    reset.disabled = true;
    const { model } = state;
    const select = form.elements.book;
    select.replaceChildren();
    model.grids.forEach((part, number) => {
      for (let depth = 0; depth < part.depth; depth++) {
        const words = model.grids.length > 1 ? [`grid ${part.height}×${part.width}`] : [];
        if (part.depth > 1) words.push(`depth ${depth}`);
        select.append(element("option", { value: String(select.length), textContent: words.join(", ") || "codes" }));
      }
    });
    panel.querySelector(".which-book").hidden = select.length < 2;
  });
  on("picture", () => attempt(encode));
  return () => attempt(async () => {
    await ensurePicture(state.limits.most_tiles);
    await encode();
  });
}

/** The number of a code in the middle of its place, unless it would be too small to read. */
function label(context, text, x, y, side) {
  const size = Math.floor(Math.min(30, 0.36 * side, (1.4 * side) / text.length));
  if (size < 15) return;
  context.font = `600 ${size}px system-ui, sans-serif`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.lineWidth = size / 5;
  context.strokeStyle = "rgb(0 0 0 / 75%)";
  context.fillStyle = "#fff";
  context.strokeText(text, x + side / 2, y + side / 2);
  context.fillText(text, x + side / 2, y + side / 2);
}
