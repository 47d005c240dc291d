// Arrays in base64, as the server sends and takes them, and pixels on a canvas.

export function fromBase64(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

export function toBase64(array) {
  const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  let binary = "";
  // In pieces, since a call takes only so many arguments.
  for (let start = 0; start < bytes.length; start += 8192) {
    binary += String.fromCharCode(...bytes.subarray(start, start + 8192));
  }
  return btoa(binary);
}

export function floats(text) {
  return new Float32Array(fromBase64(text).buffer);
}

export function integers(text) {
  return new Int32Array(fromBase64(text).buffer);
}

/** Paint pixels of 1 to 4 channels on a canvas of their size. */
export function paint(canvas, pixels, height, width, channels) {
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== height) canvas.height = height;
  const image = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    const at = i * channels;
    const isGrey = channels < 3;
    image.data[4 * i] = pixels[at];
    image.data[4 * i + 1] = isGrey ? pixels[at] : pixels[at + 1];
    image.data[4 * i + 2] = isGrey ? pixels[at] : pixels[at + 2];
    image.data[4 * i + 3] = channels === 4 ? pixels[at + 3] : 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** Which place of a grid a pointer is at: [row, column]. */
export function placeAt(event, element, height, width) {
  const box = element.getBoundingClientRect();
  const row = Math.floor(((event.clientY - box.top - element.clientTop) / element.clientHeight) * height);
  const column = Math.floor(((event.clientX - box.left - element.clientLeft) / element.clientWidth) * width);
  return [Math.max(0, Math.min(height - 1, row)), Math.max(0, Math.min(width - 1, column))];
}

/** Put the box that marks a place of a grid over it. */
export function mark(cursor, row, column, height, width) {
  cursor.hidden = false;
  cursor.style.top = `${(100 * row) / height}%`;
  cursor.style.left = `${(100 * column) / width}%`;
  cursor.style.height = `${100 / height}%`;
  cursor.style.width = `${100 / width}%`;
}

const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

/** Arrow keys as steps in a grid: the new [row, column], or nothing for other keys. */
export function stepped(event, [row, column], height, width) {
  const step = STEPS[event.key];
  if (!step) return undefined;
  event.preventDefault();
  return [
    Math.max(0, Math.min(height - 1, row + step[0])),
    Math.max(0, Math.min(width - 1, column + step[1])),
  ];
}

export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
