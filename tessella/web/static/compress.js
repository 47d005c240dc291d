// Compress: a picture as a file, and its size beside PNG.

import { fromBase64, paint, save } from "./arrays.js";
import { ask } from "./server.js";
import { attempt, element, on, state } from "./state.js";

const SVG = "http://www.w3.org/2000/svg";

export function startCompress(panel) {
  const form = panel.querySelector("form");
  const status = panel.querySelector(".status");
  const outcome = panel.querySelector(".outcome");
  const canvas = outcome.querySelector("canvas");
  const keep = outcome.querySelector("button");
  let last; // the file, and whether it is to be grey: to be compressed again when an option changes
  let blob;
  let fileName;

  async function compress(file, isGrey = false) {
    last = [file, isGrey];
    const { model } = state;
    outcome.hidden = true;
    panel.querySelector(".name").textContent = file.name;
    status.textContent = "waiting for the model";
    const address = `/api/compress?model=${encodeURIComponent(model.name)}`
      + `&name=${encodeURIComponent(file.name)}&fit=${form.elements.fit.checked}&grey=${isGrey}`;
    let answer;
    try {
      answer = await ask(address, file);
    } finally {
      status.textContent = "";
    }
    show(answer);
  }

  function show(answer) {
    const { height, width, channels } = answer;
    status.textContent = `${height}×${width}×${channels}, ${answer.bits_per_dim.toFixed(3)} bits for each pixel value`;
    canvas.hidden = !answer.image;
    if (answer.image) paint(canvas, fromBase64(answer.image), height, width, channels);
    blob = new Blob([fromBase64(answer.file)], { type: "application/octet-stream" });
    fileName = answer.name;
    keep.textContent = `Save ${fileName}`;
    const what = answer.lossless ? "All pixels come back exactly" : "Its codes are kept: what comes back is the reconstruction";
    outcome.querySelector("caption").textContent = `${what} (tessella decompress ${answer.name}).`;
    const rows = [
      ["as it was sent", answer.upload_bytes],
      ["PNG of the same pixels", answer.png_bytes],
      [answer.lossless ? "Tessella" : "Tessella, codes", answer.bytes],
    ];
    if (form.elements.fit.checked) rows.shift();
    const most = Math.max(answer.png_bytes, answer.bytes);
    const body = outcome.querySelector("tbody");
    body.replaceChildren();
    for (const [name, bytes] of rows) {
      const row = element("tr", { className: name.startsWith("Tessella") ? "ours" : "" });
      row.append(
        element("td", { textContent: name }),
        element("td", { textContent: bytes.toLocaleString("en") }),
        element("td", {}, `${((100 * bytes) / answer.png_bytes).toFixed(0)} %`, bar(Math.min(1, bytes / most))),
      );
      body.append(row);
    }
    outcome.hidden = false;
  }

  keep.addEventListener("click", () => save(blob, fileName));
  form.elements.file.addEventListener("change", () => {
    const [file] = form.elements.file.files;
    if (file) attempt(() => compress(file));
  });
  form.elements.fit.addEventListener("change", () => {
    if (last) attempt(() => compress(...last));
  });
  panel.querySelector(".current").addEventListener("click", () => attempt(async () => {
    const file = await pictureAsFile();
    // A canvas makes colours of every picture.
    if (file) await compress(file, !state.picture.file && state.model.channels === 1);
  }));
  form.addEventListener("submit", (event) => event.preventDefault());
  on("model", () => {
    outcome.hidden = true;
    status.textContent = "";
    last = undefined;
    form.elements.file.value = "";
    panel.querySelector(".name").textContent = "";
    const { model } = state;
    panel.querySelector(".size").textContent = `${model.height}×${model.width} pixels`
      + (model.levels < 256 ? ` of ${model.levels} levels` : "");
    // A model of few levels keeps no other values, and a small one is meant for small pictures.
    form.elements.fit.checked = model.levels < 256 || model.height < 16;
    panel.querySelector(".lossy").textContent = model.kind === "generator"
      ? "This model keeps the codes of a picture, not all of its pixels." : "No pixel is lost.";
  });
  on("picture", () => {
    panel.querySelector(".current").disabled = !state.picture;
  });
  return { compress: (file) => attempt(() => compress(file)) };
}

/** The picture of the other tabs as a PNG file. */
function pictureAsFile() {
  const { model, picture } = state;
  if (!picture) return undefined;
  if (picture.file) return picture.file;
  const canvas = document.createElement("canvas");
  paint(canvas, picture.pixels, model.height * picture.tiles, model.width * picture.tiles, model.channels);
  return new Promise((resolve) => {
    canvas.toBlob((blob) => resolve(new File([blob], `${picture.name.replaceAll(" ", "-")}.png`)), "image/png");
  });
}

function bar(share) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 100 10");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const rectangle = document.createElementNS(SVG, "rect");
  rectangle.setAttribute("width", String(100 * share));
  rectangle.setAttribute("height", "10");
  rectangle.setAttribute("class", "bar");
  svg.append(rectangle);
  return svg;
}
