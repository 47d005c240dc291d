// Where the picture comes from: a file, a real image, one that is drawn now; and its inverse.

import { fromBase64 } from "./arrays.js";
import { ask, listen } from "./server.js";
import { attempt, element, on, setPicture, state, takeFile } from "./state.js";

let realImages = [];
let nextReal = 0;
let nextSeed = 1000;

let isReady = Promise.resolve();

on("model", () => {
  isReady = findReal(state.model);
});

async function findReal(model) {
  realImages = [];
  nextReal = 0;
  const found = await ask(`/api/real-images?model=${encodeURIComponent(model.name)}`).catch(() => ({ images: [] }));
  if (model !== state.model) return;
  realImages = found.images.map(fromBase64);
  for (const button of document.querySelectorAll(".source .real")) button.hidden = !realImages.length;
}

/** Fill the place of a form for the source of its picture. */
export function sourceIn(place) {
  const input = element("input", { type: "file", accept: "image/*" });
  input.setAttribute("aria-label", "Open an image file");
  const open = element("span", { className: "button file" }, "Open a file…", input);
  const real = element("button", { type: "button", className: "real", textContent: "Real image", hidden: true });
  const drawn = element("button", { type: "button", className: "drawn", textContent: "Draw one" });
  const inverse = element("button", { type: "button", className: "inverse", textContent: "Invert" });
  const name = element("span", { className: "quiet" });
  const tiles = element("select", { name: "tiles" });
  const tilesField = element("label", {}, "Detail ", tiles);
  tilesField.hidden = true;
  const buttons = element("div", { className: "buttons small" }, open, real, drawn, inverse);
  const field = element("fieldset", {}, element("legend", { textContent: "Picture" }), buttons, tilesField, name);
  place.append(field);
  const hasTiles = place.dataset.tiles !== undefined;

  const take = (file) => attempt(() => takeFile(file, hasTiles ? Number(tiles.value) || 1 : 1));
  input.addEventListener("change", () => {
    if (input.files.length) take(input.files[0]);
    input.value = "";
  });
  tiles.addEventListener("change", () => take(state.picture.file));
  real.addEventListener("click", showReal);
  drawn.addEventListener("click", showDrawn);
  inverse.addEventListener("click", () => {
    const { picture } = state;
    setPicture({ ...picture, pixels: picture.pixels.map((value) => 255 - value), file: undefined });
  });

  on("model", () => {
    drawn.hidden = !state.model.abilities.includes("draw");
    const { height, width } = state.model;
    tiles.replaceChildren();
    for (let count = 1; count <= state.limits.most_tiles; count *= 2) {
      const text = `${count * height}×${count * width} pixels`;
      tiles.append(element("option", { value: String(count), textContent: text }));
    }
  });
  on("picture", () => {
    const { picture } = state;
    inverse.hidden = !picture;
    name.textContent = picture ? picture.name : "";
    tilesField.hidden = !(hasTiles && picture?.file);
    if (picture) tiles.value = String(picture.tiles);
  });
}

function showReal() {
  if (!realImages.length) return;
  const number = nextReal % realImages.length;
  nextReal += 1;
  setPicture({ pixels: realImages[number].slice(), tiles: 1, name: `test image ${number}` });
}

function showDrawn() {
  const { model } = state;
  const seed = nextSeed;
  nextSeed += 1;
  let isDone = false;
  const onEvent = (name, data) => {
    if (model !== state.model) return;
    if (name === "done") {
      isDone = true;
      setPicture({ pixels: fromBase64(data.images[0]), tiles: 1, name: `drawn with seed ${seed}` });
    } else {
      tell(`drawing one: ${data.placed} of ${data.of} symbols`);
    }
  };
  const onWait = (seconds) => tell(`the server is busy; again in ${seconds} s`);
  tell("drawing one: waiting for the model");
  return attempt(async () => {
    try {
      await listen("/api/draw", { model: model.name, seed, n: 1 }, onEvent, { onWait });
    } finally {
      if (!isDone && model === state.model) tell(state.picture?.name ?? "");
    }
  });
}

/** Say something beside the buttons of every tab, in the place of the picture's name. */
function tell(words) {
  for (const place of document.querySelectorAll(".source .quiet")) place.textContent = words;
}

/** Make sure that there is a picture that suits the model and the tab. */
export async function ensurePicture(mostTiles) {
  await isReady;
  const { picture, model } = state;
  if (picture && picture.tiles <= mostTiles) return;
  if (picture?.file) {
    await attempt(() => takeFile(picture.file, 1));
  } else if (realImages.length) {
    showReal();
  } else if (model.abilities.includes("draw")) {
    await showDrawn();
  }
}
