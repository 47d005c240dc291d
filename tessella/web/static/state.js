// What all tabs share: the model, the picture they work on, and a place for problems.

import { ask, Problem } from "./server.js";
import { fromBase64 } from "./arrays.js";

export const state = {
  models: [],
  model: undefined,
  limits: {},
  // { pixels, tiles, name, file } - `file` is there to be fitted again to another model.
  picture: undefined,
};

const listeners = { model: [], picture: [] };

export function on(what, listener) {
  listeners[what].push(listener);
}

export function setModel(model) {
  state.model = model;
  for (const listener of listeners.model) listener();
}

export function setPicture(picture) {
  state.picture = picture;
  for (const listener of listeners.picture) listener();
}

/** Fit a file to the model, as so many of its images along each side, and take it. */
export async function takeFile(file, tiles = 1) {
  if (file.size > state.limits.most_bytes) {
    throw new Problem(`The file is larger than ${Math.floor(state.limits.most_bytes / 2 ** 20)} MiB.`);
  }
  const { model } = state;
  const address = `/api/picture?model=${encodeURIComponent(model.name)}&tiles=${tiles}`;
  const { image } = await ask(address, file);
  if (model === state.model) setPicture({ pixels: fromBase64(image), tiles, name: file.name, file });
}

/** Run something that may fail; its problem is shown. */
export async function attempt(action) {
  const shown = document.getElementById("problem");
  shown.hidden = true;
  try {
    return await action();
  } catch (error) {
    if (error.name === "AbortError") return undefined;
    shown.textContent = error.message;
    shown.hidden = false;
    shown.scrollIntoView({ block: "nearest" });
    if (!(error instanceof Problem)) throw error;
    return undefined;
  }
}

export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  Object.assign(made, properties);
  made.append(...children);
  return made;
}

export function goTo(tab) {
  document.getElementById(`tab-${tab}`).click();
}
