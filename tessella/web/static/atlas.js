// What each code decodes to, asked for once for each model.

import { fromBase64 } from "./arrays.js";
import { ask } from "./server.js";

const known = new Map();

/** The codebooks of a model: [{ grid, depth, codes, height, width, patches }]. */
export async function findAtlas(model) {
  if (!known.has(model.name)) {
    const { books } = await ask(`/api/atlas?model=${encodeURIComponent(model.name)}`);
    for (const book of books) book.patches = fromBase64(book.patches);
    known.set(model.name, books);
  }
  return known.get(model.name);
}
