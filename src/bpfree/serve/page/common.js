// Parts that both pages share: elements, requests, and numbers as text.

/** Return an element with attributes and children. An attribute that begins with "on" is a listener. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Return the JSON of an answer, or throw an Error with the words of the server. */
export async function fetched(address, options = {}) {
  let answer;
  try {
    answer = await fetch(address, options);
  } catch {
    throw new Error("The server does not answer. Is it still running?");
  }
  const value = await answer.json().catch(() => ({ error: `The server answered with status ${answer.status}.` }));
  if (!answer.ok) throw new Error(value.error ?? `status ${answer.status}`);
  return value;
}

/** Return a share as text: "97.5 %", "100 %", "< 0.1 %". A line never ends before the sign. */
export function percent(share) {
  const value = 100 * share;
  if (value > 0 && value < 0.1) return "<\u00a00.1\u00a0%";
  return `${value >= 99.95 || value === 0 ? value.toFixed(0) : value.toFixed(1)}\u00a0%`;
}

/** Return a number in up to four digits. */
export function short(value) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(1).replace("e+", "e");
  return size >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));
}

/** Return the value of a metric as text: accuracies in percent. */
export function metric(name, value) {
  return /accuracy|f1|iou/.test(name) ? percent(value) : short(value);
}

/** Return seconds as text: "4.2 s", "3 min 20 s", "2 h 5 min". */
export function duration(seconds) {
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.round(seconds % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** Return the colour that a variable of the style sheet has now. */
export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** Draw values of pixels [C][H][W] on a canvas, from `low` (black) to `high` (white). */
export function showPixels(canvas, pixels, low, high) {
  const [height, width] = [pixels[0].length, pixels[0][0].length];
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const scale = 255 / Math.max(high - low, 1e-9);
  for (let row = 0; row < height; row += 1) {
    for (let column = 0; column < width; column += 1) {
      const at = 4 * (row * width + column);
      for (let channel = 0; channel < 3; channel += 1) {
        image.data[at + channel] = scale * (pixels[channel % pixels.length][row][column] - low);
      }
      image.data[at + 3] = 255;
    }
  }
  context.putImageData(image, 0, 0);
}
