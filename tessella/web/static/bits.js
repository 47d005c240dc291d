// See the bits: a heat map over the picture, and what was expected at the place of the pointer.

import { floats, mark, paint, placeAt, stepped, toBase64 } from "./arrays.js";
import { chart, likeliest, percent } from "./chart.js";
import { findBooks, findPatches, patchCanvas } from "./atlas.js";
import { ask } from "./server.js";
import { ensurePicture, sourceIn } from "./source.js";
import { attempt, element, on, state } from "./state.js";

export function startBits(panel) {
  const form = panel.querySelector("form");
  sourceIn(panel.querySelector(".source"));
  const stack = panel.querySelector(".stack");
  const picture = stack.querySelector(".picture");
  const heat = stack.querySelector(".heat");
  const cursor = stack.querySelector(".cursor");
  const status = panel.querySelector(".status");
  const expected = panel.querySelector(".expected");
  const legend = panel.querySelector(".legend");
  let scored; // the answer of the server, with the arrays unpacked
  let scoredPicture;
  let at;
  let books;
  let controller;

  const map = () => scored.maps[Number(form.elements.grid.value) || 0];

  async function score() {
    const { model, picture: given } = state;
    // While another model is taken, the tab can still be open that it has no use for.
    if (panel.hidden || !model.abilities.includes("bits")) return;
    if (given && given === scoredPicture && scored) return;
    if (!given) {
      status.textContent = "";
      return;
    }
    forget();
    scoredPicture = given;
    controller = new AbortController();
    const { height, width, channels } = model;
    paint(picture, given.pixels, height * given.tiles, width * given.tiles, channels);
    status.textContent = "waiting for the model";
    const asked = { model: model.name, image: toBase64(given.pixels), tiles: given.tiles };
    addClass(asked);
    const onWait = (seconds) => { status.textContent = `the server is busy; again in ${seconds} s`; };
    const answer = await ask("/api/bits", asked, { signal: controller.signal, onWait });
    for (const part of answer.maps) part.bits = floats(part.bits);
    const found = model.kind === "generator" ? await findBooks(model) : [];
    if (given !== scoredPicture) return;
    books = found;
    scored = answer;
    summarize();
    showMap();
  }

  function addClass(asked) {
    if (state.model.classes.length && form.elements.class.value !== "") {
      asked.class_label = Number(form.elements.class.value);
    }
  }

  function forget() {
    controller?.abort();
    scored = undefined;
    at = undefined;
    cursor.hidden = true;
    legend.hidden = true;
    expected.replaceChildren();
    heat.width = 1;
    heat.height = 1;
    status.textContent = "";
  }

  function summarize() {
    const { model } = state;
    const noun = model.kind === "generator" ? "code" : "pixel value";
    const values = scored.symbol_count;
    let words = `${scored.bits.toFixed(1)} bits: ${values} ${noun}s, ${scored.bits_per_symbol.toFixed(3)} bits each`;
    words += ` (${plainBits(model).toFixed(2)} without a model).`;
    status.textContent = words;
  }

  function showMap() {
    if (!scored) return;
    const { height, width, depth, bits } = map();
    const places = new Float32Array(height * width);
    for (let i = 0; i < bits.length; i++) places[Math.floor(i / depth)] += bits[i];
    // Not Math.max(...places), whose arguments may be too many.
    const most = places.reduce((largest, value) => Math.max(largest, value), 1e-6);
    const colours = new Uint8Array(4 * places.length);
    const view = form.elements.view.value;
    const opacity = { bits: 255, both: 165, picture: 0 }[view];
    places.forEach((value, i) => {
      colours.set(heatColour(value / most), 4 * i);
      colours[4 * i + 3] = opacity;
    });
    paint(heat, colours, height, width, 4);
    legend.hidden = false;
    legend.querySelector(".most").textContent = `${most.toFixed(1)} bits`;
    const scale = new Uint8Array(4 * 128);
    for (let i = 0; i < 128; i++) {
      scale.set(heatColour(i / 127), 4 * i);
      scale[4 * i + 3] = 255;
    }
    paint(legend.querySelector("canvas"), scale, 1, 128, 4);
  }

  // One question at a time; of the places that the pointer passed meanwhile only the last counts.
  let isAsking = false;
  let wanted;

  function point(place) {
    if (!scored) return;
    const { height, width } = map();
    mark(cursor, place[0], place[1], height, width);
    if (at && at[0] === place[0] && at[1] === place[1]) return;
    at = place;
    wanted = place;
    if (!isAsking) attempt(answerPlaces);
  }

  async function answerPlaces() {
    isAsking = true;
    try {
      while (wanted && scored) {
        const [row, column] = wanted;
        wanted = undefined;
        const here = scored;
        const asked = { model: state.model.name, symbols: here.symbols, tiles: state.picture.tiles, row, column };
        asked.grid = Number(form.elements.grid.value) || 0;
        addClass(asked);
        const answer = await ask("/api/expect", asked, { signal: controller.signal });
        if (here === scored && !wanted) await showExpected(answer, row, column, here);
      }
    } finally {
      isAsking = false;
    }
  }

  async function showExpected(answer, row, column, here) {
    const { model } = state;
    const isCode = model.kind === "generator";
    const place = element("p", { className: "quiet", textContent: `Row ${row + 1}, column ${column + 1}` });
    const names = isCode ? [] : CHANNELS[model.channels] ?? [];
    const charts = [];
    const sheets = [];
    answer.probabilities.forEach((text, index) => {
      const probabilities = floats(text);
      const symbol = answer.symbols[index];
      const title = names[index] ?? (answer.symbols.length > 1 ? `Depth ${index}` : "");
      charts.push(chart({ title, probabilities, symbol, noun: isCode ? "code" : "level", channel: names[index] }));
      if (isCode) {
        const sheet = element("div", { className: "patches" });
        charts.push(sheet);
        sheets.push(showLikeliest(sheet, probabilities, index, here));
      }
    });
    expected.replaceChildren(place, ...charts);
    await Promise.all(sheets);
  }

  /** The patches of the codes that were expected most. */
  async function showLikeliest(sheet, probabilities, depth, here) {
    const { model } = state;
    const grid = Number(form.elements.grid.value) || 0;
    const number = books.findIndex((part) => part.grid === grid && part.depth === depth);
    const book = books[number];
    const codes = likeliest(probabilities, 6);
    await findPatches(model, number, codes);
    if (here !== scored) return;
    for (const code of codes) {
      const words = `code ${code}\n${percent(probabilities[code])}`;
      sheet.append(element("figure", {}, patchCanvas(book, code, model.channels), element("figcaption", { textContent: words })));
    }
  }

  const placeOf = (event) => placeAt(event, stack, map().height, map().width);
  stack.addEventListener("pointermove", (event) => { if (scored) point(placeOf(event)); });
  stack.addEventListener("pointerdown", (event) => { if (scored) point(placeOf(event)); });
  stack.addEventListener("keydown", (event) => {
    if (!scored) return;
    const { height, width } = map();
    const next = stepped(event, at ?? [0, -1], height, width);
    if (next) point(next);
  });

  for (const radio of form.elements.view) radio.addEventListener("change", showMap);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.elements.class.addEventListener("change", () => {
    scoredPicture = undefined;
    attempt(score);
  });
  form.elements.grid.addEventListener("change", () => {
    at = undefined;
    cursor.hidden = true;
    expected.replaceChildren();
    showMap();
  });
  on("model", () => {
    forget();
    scoredPicture = undefined;
    const { model } = state;
    panel.querySelector(".class-of-picture").hidden = model.classes.length === 0;
    form.elements.class.replaceChildren();
    if (model.guidance) form.elements.class.append(element("option", { value: "", textContent: "none" }));
    model.classes.forEach((name, index) => {
      form.elements.class.append(element("option", { value: String(index), textContent: name }));
    });
    panel.querySelector(".which-grid").hidden = model.grids.length < 2;
    form.elements.grid.replaceChildren();
    model.grids.forEach((grid, index) => {
      form.elements.grid.append(element("option", { value: String(index), textContent: `${grid.height}×${grid.width}` }));
    });
  });
  on("picture", () => attempt(score));
  return () => attempt(async () => {
    await ensurePicture(state.limits.most_tiles);
    await score();
  });
}

const CHANNELS = { 1: [""], 3: ["Red", "Green", "Blue"], 4: ["Red", "Green", "Blue", "Opacity"] };

/** Bits of a symbol where all are equally likely, averaged over the grids. */
function plainBits(model) {
  if (model.kind !== "generator") return Math.log2(model.levels);
  let bits = 0;
  let count = 0;
  for (const { height, width, depth, levels } of model.grids) {
    bits += height * width * depth * Math.log2(levels);
    count += height * width * depth;
  }
  return bits / count;
}

// Black, violet, orange, yellow, white: brightness grows evenly, so that the map also reads in grey.
const STOPS = [[0, 0, 4], [66, 10, 104], [147, 38, 103], [221, 81, 58], [252, 165, 10], [252, 255, 164]];

function heatColour(share) {
  const place = Math.max(0, Math.min(1, share)) * (STOPS.length - 1);
  const below = Math.min(STOPS.length - 2, Math.floor(place));
  const part = place - below;
  return STOPS[below].map((value, i) => Math.round(value + part * (STOPS[below + 1][i] - value)));
}
