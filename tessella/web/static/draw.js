// Draw live.

import { Gallery } from "./gallery.js";
import { rulesIn } from "./rules.js";
import { on, state } from "./state.js";

export function startDraw(panel) {
  const rules = rulesIn(panel.querySelector(".rules"));
  const gallery = new Gallery(panel);
  const draw = () => gallery.show("/api/draw", rules.read());
  panel.querySelector("form").addEventListener("submit", (event) => {
    event.preventDefault();
    draw();
  });
  panel.querySelector(".more").addEventListener("click", () => {
    const seed = /^[0-9]+$/.test(rules.seed.value.trim()) ? BigInt(rules.seed.value.trim()) : 0n;
    rules.seed.value = String(seed + BigInt(rules.many.value || 1));
    draw();
  });
  on("model", () => {
    gallery.clear();
    panel.querySelector(".order").textContent = state.model.rules
      ? "Images are drawn symbol after symbol." : "All pixels of an image are drawn at once.";
  });
}
