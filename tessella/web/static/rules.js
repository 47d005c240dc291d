// The options of drawing, which Draw and Complete share.

import { element, on, state } from "./state.js";


function field(label, input, isWide = false) {
  const made = element("label", { className: isWide ? "wide" : "" }, label, input);
  return made;
}

/** Fill a form's place for the options. Returns a function that reads them as the server takes them. */
export function rulesIn(place) {
  const seed = element("input", { name: "seed", inputMode: "numeric", value: "0", autocomplete: "off" });
  const many = element("input", { name: "n", type: "number", min: 1, max: 16, value: 4 });
  const temperature = element("input", { name: "temperature", type: "range", min: 0.1, max: 2, step: 0.05, value: 1 });
  const shown = element("span", { textContent: "1" });
  const topK = element("input", { name: "top_k", type: "number", min: 0, value: 0 });
  const topP = element("input", { name: "top_p", type: "number", min: 0.01, max: 1, step: 0.01, value: 1 });
  const classes = element("select", { name: "class_label" });
  const guidance = element("input", { name: "guidance", type: "number", min: 0, max: 20, step: 0.1, value: 1 });
  const classField = field("Class", classes, true);
  const guidanceField = field("Guidance (1: none)", guidance, true);
  temperature.addEventListener("input", () => { shown.textContent = temperature.value; });
  const words = element("span", {}, "Temperature ", shown);
  const warm = element("label", { className: "wide" }, words, temperature);
  const more = element("details", {}, element("summary", { textContent: "Top-k, top-p" }));
  more.append(element("div", {}, field("Top-k (0: all)", topK), field("Top-p (1: all)", topP)));
  place.append(field("Seed", seed), field(place.dataset.many, many), classField, guidanceField, warm, more);

  function renew() {
    const { model } = state;
    const rules = model.rules;
    classField.hidden = model.classes.length === 0;
    guidanceField.hidden = !model.guidance;
    warm.hidden = !rules;
    more.hidden = !rules;
    many.max = state.limits.most_images;
    classes.replaceChildren();
    if (model.guidance) classes.append(element("option", { value: "", textContent: "any" }));
    model.classes.forEach((name, index) => {
      classes.append(element("option", { value: String(index), textContent: name }));
    });
    guidance.value = "1";
  }
  on("model", renew);

  function read() {
    const asked = { model: state.model.name, seed: seed.value.trim() || "0", n: Number(many.value) };
    if (!state.model.rules) return asked;
    asked.temperature = Number(temperature.value);
    asked.top_k = Number(topK.value);
    asked.top_p = Number(topP.value);
    if (state.model.classes.length && classes.value !== "") asked.class_label = Number(classes.value);
    if (state.model.guidance) asked.guidance = Number(guidance.value);
    return asked;
  }
  return { read, seed, many };
}

/** The same call in Python. */
export function inPython(model, asked, seed) {
  const words = ["1", `seed=${seed}`];
  if (asked.class_label !== undefined) words.push(`cond=torch.tensor([${asked.class_label}])`);
  const usual = { temperature: 1, top_k: 0, top_p: 1, guidance: 1 };
  for (const [name, value] of Object.entries(usual)) {
    if (asked[name] !== undefined && asked[name] !== value) words.push(`${name}=${asked[name]}`);
  }
  const lines = ["import tessella as ts"];
  if (asked.class_label !== undefined) lines.unshift("import torch");
  lines.push("", `ts.load(${JSON.stringify(model.run)}).sample(${words.join(", ")})`);
  return lines.join("\n");
}
