// See the bits: a heat map over the picture, and what was expected at the place of the pointer.

import { floats, mark, paint, placeAt, stepped, toBase64 } from "./arrays.js";
import { chart } from "./chart.js";
import { findAtlas } from "./atlas.js";
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
  let atlas;
  let controller;

  const map = () => scored.maps[Number(form.elements.grid.value) || 0];

  async function score() {
    const { model, picture: given } = state;
    if (!given || panel.hidden) return;
    if (given === scoredPicture && scored) return;
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
    atlas = model.kind === "generator" ? await findAtlas(model) : undefined;
    if (given !== scoredPicture) return;
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
    const plain = Math.log2(model.kind === "generator" ? model.grids[0].levels : model.levels);
    words += ` (${plain.toFixed(2)} without a model).`;
    status.textContent = words;
  }

  function showMap() {
    if (!scored) return;
    const { height, width, depth, bits } = map();
    const places = new Float32Array(height * width);
    for (let i = 0; i < bits.length; i++) places[Math.floor(i / depth)] += bits[i];
    const most = Math.max(1e-6, ...places);
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
        if (here === scored && !wanted) showExpected(answer, row, column);
      }
    } finally {
      isAsking = false;
    }
  }

  function showExpected(answer, row, column) {
    const { model } = state;
    const isCode = model.kind === "generator";
    expected.replaceChildren(element("p", { className: "quiet", textContent: `Row ${row + 1}, column ${column + 1}` }));
    const names = isCode ? [] : { 1: [""], 3: ["Red", "Green", "Blue"], 4: ["Red", "Green", "Blue", "Opacity"] }[model.channels] ?? [];
    answer.probabilities.forEach((text, index) => {
      const probabilities = floats(text);
      const symbol = answer.symbols[index];
      const title = names[index] ?? (answer.symbols.length > 1 ? `depth ${index}` : "");
      expected.append(chart({ title, probabilities, symbol, noun: isCode ? "code" : "level", channel: names[index] }));
      if (isCode && atlas) expected.append(likeliest(probabilities, index));
    });
  }

  /** The patches of the codes that were expected most. */
  function likeliest(probabilities, depth) {
    const grid = Number(form.elements.grid.value) || 0;
    const book = atlas.find((part) => part.grid === grid && part.depth === depth);
    const order = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]);
    const place = element("div", { className: "patches" });
    for (const code of order.slice(0, 6)) {
      if (code >= book.codes) continue;
      const canvas = element("canvas");
      const size = book.height * book.width * state.model.channels;
      paint(canvas, book.patches.subarray(code * size, (code + 1) * size), book.height, book.width, state.model.channels);
      const words = `code ${code}\n${(100 * probabilities[code]).toFixed(1)} %`;
      place.append(element("figure", {}, canvas, element("figcaption", { textContent: words })));
    }
    return place;
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

// Black, violet, orange, yellow, white: brightness grows evenly, so that the map also reads in grey.
const STOPS = [[0, 0, 4], [66, 10, 104], [147, 38, 103], [221, 81, 58], [252, 165, 10], [252, 255, 164]];

function heatColour(share) {
  const place = Math.max(0, Math.min(1, share)) * (STOPS.length - 1);
  const below = Math.min(STOPS.length - 2, Math.floor(place));
  const part = place - below;
  return STOPS[below].map((value, i) => Math.round(value + part * (STOPS[below + 1][i] - value)));
}
