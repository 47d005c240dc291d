// The page: tabs, the choice of the model, and files that are dropped anywhere.

import { startBits } from "./bits.js";
import { startCodes } from "./codes.js";
import { startComplete } from "./complete.js";
import { startCompress } from "./compress.js";
import { startDraw } from "./draw.js";
import { ask } from "./server.js";
import { attempt, element, setModel, setPicture, state, takeFile } from "./state.js";
import { gridsInWords } from "./words.js";

const NAMES = ["draw", "complete", "bits", "codes", "compress"];
const tabs = NAMES.map((name) => document.getElementById(`tab-${name}`));
const panels = NAMES.map((name) => document.getElementById(`panel-${name}`));

startDraw(panels[0]);
const openComplete = startComplete(panels[1]);
const openBits = startBits(panels[2]);
const openCodes = startCodes(panels[3]);
const { compress } = startCompress(panels[4]);
const opened = [undefined, openComplete, openBits, openCodes, undefined];

let current = 0;

function select(number, hasFocus = false) {
  current = number;
  tabs.forEach((tab, i) => {
    tab.setAttribute("aria-selected", String(i === number));
    tab.tabIndex = i === number ? 0 : -1;
    panels[i].hidden = i !== number;
  });
  if (hasFocus) tabs[number].focus();
  history.replaceState(null, "", `#${NAMES[number]}`);
  document.getElementById("problem").hidden = true;
  if (opened[number]) opened[number]();
}

tabs.forEach((tab, i) => tab.addEventListener("click", () => select(i)));
document.querySelector("[role=tablist]").addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const able = tabs.map((_, i) => i).filter((i) => !tabs[i].disabled);
  const next = (able.indexOf(current) + step + able.length) % able.length;
  select(able[next], true);
});

// A file that is dropped anywhere becomes the picture; on Compress it is compressed.

document.addEventListener("dragover", (event) => {
  if (![...event.dataTransfer.types].includes("Files")) return;
  event.preventDefault();
  document.body.classList.add("dragging");
});
for (const name of ["dragleave", "drop"]) {
  document.addEventListener(name, () => document.body.classList.remove("dragging"));
}
document.addEventListener("drop", (event) => {
  event.preventDefault();
  const [file] = event.dataTransfer.files;
  if (!file) return;
  if (NAMES[current] === "compress") compress(file);
  else attempt(() => takeFile(file));
});

// The model

const choice = document.getElementById("model");

function describe(model) {
  const size = `${model.height}×${model.width}${model.channels > 1 ? `×${model.channels}` : ""}`;
  const parts = [model.about || model.title, `${size} pixels`];
  if (model.kind === "density-model") parts.push(`${model.levels} levels`);
  else if (model.kind !== "vae") parts.push(gridsInWords(model.grids));
  parts.push(`${model.parameters.toLocaleString("en")} parameters`);
  const facts = parts.join(" · ");
  return model.lacks ? `${facts}. ${model.lacks}` : facts;
}

async function take(model) {
  const { model: before, picture } = state;
  document.getElementById("facts").textContent = describe(model);
  tabs.forEach((tab, i) => {
    const isAble = model.abilities.includes(NAMES[i]);
    tab.disabled = !isAble;
    tab.hidden = !isAble;
  });
  setModel(model);
  // A file is fitted to the new model; another picture stays where it suits.
  const sameSize = before && ["height", "width", "channels", "levels"].every((key) => before[key] === model[key]);
  if (picture?.file) {
    setPicture(undefined);
    await attempt(() => takeFile(picture.file, 1));
  } else {
    setPicture(sameSize ? picture : undefined);
  }
  const wanted = NAMES.indexOf(location.hash.slice(1));
  const able = NAMES.findIndex((name) => model.abilities.includes(name));
  select(wanted >= 0 && !tabs[wanted].disabled ? wanted : able);
}

choice.addEventListener("change", () => attempt(() => take(state.models[choice.selectedIndex])));

await attempt(async () => {
  const { models, ...limits } = await ask("/api/models");
  state.models = models;
  state.limits = limits;
  for (const model of models) choice.append(element("option", { textContent: model.name }));
  choice.disabled = models.length < 2;
  await take(models[0]);
});
