// Images that arrive row by row, in a grid of buttons; one can be chosen.

import { fromBase64, paint, save } from "./arrays.js";
import { listen } from "./server.js";
import { attempt, element, goTo, setPicture, state } from "./state.js";
import { inPython } from "./rules.js";

/** A gallery in the results of a panel. */
export class Gallery {
  constructor(panel) {
    this.panel = panel;
    this.form = panel.querySelector("form");
    this.place = panel.querySelector(".gallery");
    this.status = panel.querySelector(".results > .status");
    this.progress = panel.querySelector("progress");
    this.chosen = panel.querySelector(".chosen");
    this.stop = panel.querySelector(".stop");
    this.stop.addEventListener("click", () => this.leave("stopped"));
  }

  /** Forget everything that is shown. */
  clear() {
    this.leave("");
    this.place.replaceChildren();
    this.chosen.hidden = true;
  }

  leave(words) {
    this.controller?.abort();
    this.controller = undefined;
    this.idle(words);
  }

  idle(words) {
    this.status.textContent = words;
    this.progress.hidden = true;
    this.stop.hidden = true;
    this.form.querySelector("[type=submit]").disabled = false;
  }

  /** Send a request and show its images as they come. */
  async show(path, asked) {
    this.clear();
    const controller = new AbortController();
    this.controller = controller;
    const { model } = state;
    const first = BigInt(/^[0-9]+$/.test(asked.seed) ? asked.seed : 0);
    const canvases = [];
    for (let i = 0; i < asked.n; i++) canvases.push(this.add(model, asked, first + BigInt(i)));
    this.place.classList.toggle("one", asked.n === 1);
    this.place.classList.toggle("few", asked.n > 1 && asked.n <= 4);
    this.status.textContent = "waiting for the model";
    this.progress.removeAttribute("value");
    this.progress.hidden = false;
    this.stop.hidden = false;
    this.form.querySelector("[type=submit]").disabled = true;
    const start = performance.now();
    const onEvent = (name, data) => {
      data.images.forEach((image, i) => {
        const pixels = fromBase64(image);
        paint(canvases[i], pixels, model.height, model.width, model.channels);
        canvases[i].pixels = pixels;
      });
      if (name === "done") {
        const seconds = ((performance.now() - start) / 1000).toFixed(1);
        const noun = asked.n === 1 ? "image" : "images";
        this.place.dataset.done = "true";
        this.idle(`${asked.n} ${noun} in ${seconds} s`);
      } else {
        this.progress.value = data.placed / data.of;
        this.status.textContent = `${data.placed} of ${data.of} symbols`;
      }
    };
    const onWait = (seconds) => {
      this.status.textContent = `the server is busy; again in ${seconds} s`;
    };
    delete this.place.dataset.done;
    await attempt(async () => {
      try {
        await listen(path, asked, onEvent, { signal: controller.signal, onWait });
      } finally {
        // A newer request has its own state by now.
        if (this.controller === controller && !this.progress.hidden) this.clear();
      }
    });
  }

  add(model, asked, seed) {
    const canvas = element("canvas", { width: model.width, height: model.height });
    const button = element("button", { type: "button", ariaPressed: "false" }, canvas);
    button.setAttribute("aria-label", `Image with seed ${seed}`);
    button.addEventListener("click", () => this.choose(button, canvas, model, asked, seed));
    this.place.append(element("figure", {}, button, element("figcaption", { textContent: `seed ${seed}` })));
    return canvas;
  }

  choose(button, canvas, model, asked, seed) {
    if (!canvas.pixels) return;
    for (const other of this.place.querySelectorAll("button")) {
      other.setAttribute("aria-pressed", String(other === button));
    }
    this.chosen.hidden = false;
    this.chosen.querySelector(".chosen-name").textContent = `Seed ${seed}`;
    const buttons = this.chosen.querySelector(".buttons");
    buttons.replaceChildren();
    const labels = { complete: "Complete it", bits: "See its bits", codes: "See its codes" };
    for (const [tab, label] of Object.entries(labels)) {
      if (!model.abilities.includes(tab) || this.panel.id === `panel-${tab}`) continue;
      const go = element("button", { type: "button", textContent: label });
      go.addEventListener("click", () => {
        setPicture({ pixels: canvas.pixels.slice(), tiles: 1, name: `seed ${seed}` });
        goTo(tab);
      });
      buttons.append(go);
    }
    const keep = element("button", { type: "button", textContent: "Save as PNG" });
    keep.addEventListener("click", () => {
      canvas.toBlob((blob) => save(blob, `${model.name}-${seed}.png`), "image/png");
    });
    buttons.append(keep);
    const code = this.chosen.querySelector("code");
    if (code) code.textContent = inPython(model, asked, seed);
  }
}
