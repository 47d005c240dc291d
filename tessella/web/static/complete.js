// Complete: brush what to keep, and draw the rest several times.

import { mark, paint, placeAt, stepped, toBase64 } from "./arrays.js";
import { Gallery } from "./gallery.js";
import { rulesIn } from "./rules.js";
import { ensurePicture, sourceIn } from "./source.js";
import { attempt, element, on, state } from "./state.js";

const VEIL_SIDE = 512; // pixels of the veil along its longer side, about

export function startComplete(panel) {
  const form = panel.querySelector("form");
  sourceIn(panel.querySelector(".source"));
  const rules = rulesIn(panel.querySelector(".rules"));
  const gallery = new Gallery(panel);
  const stack = panel.querySelector(".stack");
  const picture = stack.querySelector(".picture");
  const veil = stack.querySelector(".veil");
  const cursor = element("div", { className: "cursor", hidden: true });
  stack.append(cursor);
  const place = panel.querySelector(".place");
  let known = new Uint8Array(0);
  let at = [0, 0];
  let previous;

  function showVeil() {
    const { height, width } = state.model;
    const scale = Math.max(1, Math.floor(VEIL_SIDE / Math.max(height, width)));
    veil.width = width * scale;
    veil.height = height * scale;
    const context = veil.getContext("2d");
    context.fillStyle = stripes(context, scale);
    for (let row = 0; row < height; row++) {
      for (let column = 0; column < width; column++) {
        if (!known[row * width + column]) context.fillRect(column * scale, row * scale, scale, scale);
      }
    }
  }

  function brush([row, column]) {
    const { height, width } = state.model;
    const size = Number(form.elements.size.value);
    const value = form.elements.brush.value === "keep" ? 1 : 0;
    // A brush of even size lies above and left of its place.
    const top = row - Math.floor(size / 2);
    const left = column - Math.floor(size / 2);
    for (let y = Math.max(0, top); y < Math.min(height, top + size); y++) {
      for (let x = Math.max(0, left); x < Math.min(width, left + size); x++) known[y * width + x] = value;
    }
  }

  /** Brush along the line from the last place, since pointers are reported now and then only. */
  function brushTo(target) {
    const from = previous ?? target;
    const steps = Math.max(1, Math.abs(target[0] - from[0]), Math.abs(target[1] - from[1]));
    for (let i = 1; i <= steps; i++) {
      brush([
        Math.round(from[0] + ((target[0] - from[0]) * i) / steps),
        Math.round(from[1] + ((target[1] - from[1]) * i) / steps),
      ]);
    }
    previous = target;
    showVeil();
  }

  stack.addEventListener("pointerdown", (event) => {
    if (!state.picture) return;
    event.preventDefault();
    stack.setPointerCapture(event.pointerId);
    cursor.hidden = true;
    previous = undefined;
    brushTo(placeAt(event, stack, state.model.height, state.model.width));
  });
  stack.addEventListener("pointermove", (event) => {
    if (!stack.hasPointerCapture(event.pointerId)) return;
    brushTo(placeAt(event, stack, state.model.height, state.model.width));
  });
  stack.addEventListener("keydown", (event) => {
    const { height, width } = state.model;
    const next = stepped(event, at, height, width);
    if (next) {
      at = next;
    } else if (event.key === " ") {
      event.preventDefault();
      previous = undefined;
      brushTo(at);
    } else {
      return;
    }
    mark(cursor, at[0], at[1], height, width);
    const word = known[at[0] * width + at[1]] ? "kept" : "drawn anew";
    place.textContent = `row ${at[0] + 1}, column ${at[1] + 1}: ${word}`;
  });

  function keep(what) {
    const { height, width } = state.model;
    known = new Uint8Array(height * width);
    for (let row = 0; row < height; row++) {
      for (let column = 0; column < width; column++) {
        const isKept =
          what === "all" || (what === "upper" && row < height / 2) || (what === "left" && column < width / 2);
        if (isKept) known[row * width + column] = 1;
      }
    }
    showVeil();
  }
  for (const button of panel.querySelectorAll("[data-keep]")) {
    button.addEventListener("click", () => keep(button.dataset.keep));
  }

  function showPicture() {
    const { model } = state;
    if (state.picture?.tiles !== 1) return;
    paint(picture, state.picture.pixels, model.height, model.width, model.channels);
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (state.picture?.tiles !== 1) {
      gallery.idle("there is no picture to complete yet");
      return;
    }
    const asked = { ...rules.read(), image: toBase64(state.picture.pixels), known: toBase64(known) };
    gallery.show("/api/complete", asked);
  });
  on("model", () => {
    gallery.clear();
    keep("upper");
    const { model } = state;
    form.elements.size.max = Math.max(2, Math.floor(Math.min(model.height, model.width) / 2));
    let order = "Symbols are drawn from the top left on: what is kept further down cannot steer what stands above it.";
    if (model.kind === "generator") {
      order += " A code is kept where all of its pixels are, and comes back as a reconstruction.";
    }
    panel.querySelector(".order").textContent = order;
  });
  on("picture", () => {
    gallery.clear();
    showPicture();
  });
  return async () => {
    await attempt(() => ensurePicture(1));
    showPicture();
  };
}

/** Diagonal stripes for what will be drawn, visible on any picture. */
function stripes(context, scale) {
  const side = Math.max(4, Math.min(16, scale));
  const tile = document.createElement("canvas");
  tile.width = side;
  tile.height = side;
  const brush = tile.getContext("2d");
  brush.fillStyle = "rgb(240 238 232)";
  brush.fillRect(0, 0, side, side);
  brush.strokeStyle = "rgb(176 172 160)";
  brush.lineWidth = side / 5;
  for (const shift of [-side, 0, side]) {
    brush.beginPath();
    brush.moveTo(shift - 1, side + 1);
    brush.lineTo(shift + side + 1, -1);
    brush.stroke();
  }
  return context.createPattern(tile, "repeat");
}
