// A distribution over levels or codes as a bar chart, with the symbol that is there picked out.

import { element } from "./state.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 520;
const HEIGHT = 130;
const LEFT = 66; // room for "100.0 %"
const STRIP = 8;
const MOST_BARS = 1024;

function shape(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

/** The `count` levels that are likeliest, the likeliest first. */
export function likeliest(probabilities, count) {
  const found = [];
  probabilities.forEach((share, level) => {
    if (found.length === count && share <= probabilities[found.at(-1)]) return;
    let place = found.length;
    while (place > 0 && probabilities[found[place - 1]] < share) place -= 1;
    found.splice(place, 0, level);
    if (found.length > count) found.pop();
  });
  return found;
}

/** A probability as a reader takes it in. */
export function percent(share) {
  if (share < 0.00001) return "<0.001\u00a0%";
  return `${(100 * share).toFixed(share < 0.001 ? 3 : 1)}\u00a0%`;
}

/** A figure: `noun` is level or code; levels have shades under the bars. */
export function chart({ title, probabilities, symbol, noun, channel }) {
  const levels = probabilities.length;
  const [top] = likeliest(probabilities, 1);
  const most = probabilities[top];
  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT + 36}`, role: "img" });
  const step = (WIDTH - LEFT) / levels;
  const gap = step > 4 ? 1 : 0;
  svg.append(shape("line", { x1: LEFT, x2: WIDTH, y1: HEIGHT, y2: HEIGHT, class: "rule" }));
  svg.append(shape("text", { x: LEFT - 6, y: 13, "text-anchor": "end", class: "axis" }, percent(most)));
  svg.append(shape("text", { x: LEFT - 6, y: HEIGHT, "text-anchor": "end", class: "axis" }, "0"));
  for (const level of drawnLevels(probabilities, symbol)) {
    const share = probabilities[level];
    const height = ((HEIGHT - 4) * share) / most;
    const bar = shape("rect", {
      x: LEFT + level * step,
      y: HEIGHT - height,
      width: Math.max(0.5, step - gap),
      height,
      class: level === symbol ? "bar here" : "bar",
    });
    bar.append(shape("title", {}, `${noun} ${level}: ${percent(share)}`));
    svg.append(bar);
    if (noun === "level") {
      svg.append(shape("rect", { x: LEFT + level * step, y: HEIGHT + 4, width: step + 0.5, height: STRIP, fill: shade(level, levels, channel) }));
    }
  }
  // Where the bar is too low to be seen, the triangle still shows the place.
  const x = LEFT + (symbol + 0.5) * step;
  const y = HEIGHT + (noun === "level" ? 4 + STRIP : 2);
  svg.append(shape("path", { d: `M${x} ${y} l5 8 h-10 z`, class: "bar here" }));
  for (const level of [0, Math.floor(levels / 2), levels - 1]) {
    if (Math.abs(level - symbol) < levels / 12) continue;
    const at = LEFT + (level + 0.5) * step;
    const anchor = level === levels - 1 ? "end" : "middle";
    svg.append(shape("text", { x: at, y: HEIGHT + 30, "text-anchor": anchor, class: "axis" }, String(level)));
  }
  svg.append(shape("text", { x, y: HEIGHT + 30, "text-anchor": symbol > 0.95 * levels ? "end" : "middle", class: "axis here-name" }, String(symbol)));
  const words = inWords(probabilities, symbol, noun);
  svg.setAttribute("aria-label", words);
  const caption = element("figcaption");
  if (title) caption.append(element("strong", { textContent: `${title}: ` }));
  caption.append(title ? words : words[0].toUpperCase() + words.slice(1));
  return element("figure", { className: "chart" }, caption, svg);
}

/** All levels; of more than a chart has room for, the likeliest of those that would share a bar. */
function drawnLevels(probabilities, symbol) {
  const levels = probabilities.length;
  const together = Math.ceil(levels / MOST_BARS);
  const drawn = [];
  for (let start = 0; start < levels; start += together) {
    const [highest] = likeliest(probabilities.subarray(start, start + together), 1);
    drawn.push(start + highest);
  }
  // Last, and so before the others.
  return [...drawn.filter((level) => level !== symbol), symbol];
}

/** What the chart shows, for readers of words. */
function inWords(probabilities, symbol, noun) {
  const share = probabilities[symbol];
  // A share that a float cannot hold has come as 0.
  const bits = share > 0 ? (-Math.log2(share)).toFixed(2) : "more than 149";
  const [top] = likeliest(probabilities, 1);
  let words = `${noun} ${symbol} was expected with ${percent(share)}, which is ${bits} bits`;
  if (noun === "level") {
    const beside = [symbol - 1, symbol + 1].filter((level) => level >= 0 && level < probabilities.length);
    const shares = beside.map((level) => `${level} with ${percent(probabilities[level])}`);
    words += `; beside it ${shares.join(" and ")}`;
  }
  if (top !== symbol) words += `. Most expected: ${noun} ${top}, ${percent(probabilities[top])}`;
  return `${words}.`;
}

function shade(level, levels, channel) {
  const value = Math.round((255 * level) / (levels - 1));
  const place = ["Red", "Green", "Blue"].indexOf(channel);
  const colour = [value, value, value];
  if (place >= 0) colour.forEach((_, i) => { if (i !== place) colour[i] = 0; });
  return `rgb(${colour.join(" ")})`;
}
