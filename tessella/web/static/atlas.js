// What codes decode to: asked for some codes at a time, and kept.

import { fromBase64, paint, toBase64 } from "./arrays.js";
import { ask } from "./server.js";

const known = new Map();

/** The codebooks of a model: [{ grid, depth, codes, side, most_patches, patches }]. */
export async function findBooks(model) {
  if (!known.has(model.name)) {
    const { books } = await ask(`/api/books?model=${encodeURIComponent(model.name)}`);
    for (const book of books) book.patches = new Map();
    known.set(model.name, books);
  }
  return known.get(model.name);
}

/**
 * Have the patches of some codes of a codebook, a request after another.
 * `onSome(number of codes that are there)` is called after each; where it returns false, no more are asked for.
 */
export async function findPatches(model, number, codes, onSome = () => true) {
  const book = known.get(model.name)[number];
  const missing = [...new Set(codes)].filter((code) => !book.patches.has(code));
  const there = codes.length - missing.length;
  for (let start = 0; start < missing.length; start += book.most_patches) {
    const some = missing.slice(start, start + book.most_patches);
    const asked = { model: model.name, book: number, codes: toBase64(Int32Array.from(some)) };
    const { patches } = await ask("/api/patches", asked);
    const pixels = fromBase64(patches);
    const size = pixels.length / some.length;
    some.forEach((code, i) => book.patches.set(code, pixels.subarray(i * size, (i + 1) * size)));
    if (onSome(there + start + some.length) === false) return;
  }
}

/** A canvas with the patch of a code; undefined where it has not been asked for. */
export function patchCanvas(book, code, channels) {
  const pixels = book.patches.get(code);
  if (!pixels) return undefined;
  const canvas = document.createElement("canvas");
  paint(canvas, pixels, book.side, book.side, channels);
  return canvas;
}
