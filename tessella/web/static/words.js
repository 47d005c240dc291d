// Sizes in words.

/** Grids of codes: "8×8 codes of 512", "4×4 and 8×8 codes of 512". */
export function gridsInWords(grids) {
  const sizes = grids.map((grid) => `${grid.height}×${grid.width}${grid.depth > 1 ? `×${grid.depth}` : ""}`);
  const levels = grids.map((grid) => grid.levels);
  if (new Set(levels).size === 1) return `${listed(sizes)} codes of ${levels[0]}`;
  return listed(sizes.map((size, i) => `${size} codes of ${levels[i]}`));
}

function listed(words) {
  if (words.length < 2) return words.join("");
  return `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`;
}
