// Line charts as SVG, in the colours of the page. The pointer shows the values at a place.

import { element, metric, short } from "./common.js";

const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT] = [420, 240];
const MARGIN = { top: 10, right: 12, bottom: 34, left: 52 };
const COLOURS = 8;
const NAMED = 12; // lines in a legend; of more only the first and the last are named

function shape(tag, attributes, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Return round numbers from low to high, about as many as asked for. */
export function ticks(low, high, count) {
  if (!(high > low)) return [low];
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * (rough / power < 1.5 ? 1 : rough / power < 3 ? 2 : rough / power < 7 ? 5 : 10);
  const found = [];
  for (let at = Math.ceil(low / step); at * step <= high + step * 1e-9; at += 1) found.push(at * step);
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    for (const factor of high / low > 50 ? [1] : [1, 2, 5]) found.push(factor * 10 ** power);
  }
  return found.filter((value) => value >= low * 0.999 && value <= high * 1.001);
}

/** Return the scale from values to pixels; logarithmic for losses that differ by much. */
function scaleOf(values, from, to, wantsLog) {
  let [low, high] = [Math.min(...values), Math.max(...values)];
  const isLog = wantsLog && low > 0 && high / low > 5;
  if (low === high) [low, high] = [low - (Math.abs(low) || 1) * 0.05, high + (Math.abs(high) || 1) * 0.05];
  const map = isLog ? Math.log10 : (value) => value;
  const place = (value) => from + ((map(value) - map(low)) / (map(high) - map(low))) * (to - from);
  return { place, low, high, isLog };
}

/** Return a figure with a chart. `lines` are { name, x, y, colour, dashed }. */
export function chart({ title, x, y, lines }) {
  const shown = lines.filter((line) => line.x.length);
  const caption = element("figcaption", {}, title);
  if (!shown.length) return element("figure", { class: "chart" }, caption);
  const across = scaleOf(shown.flatMap((line) => line.x), MARGIN.left, WIDTH - MARGIN.right, false);
  const up = scaleOf(shown.flatMap((line) => line.y), HEIGHT - MARGIN.bottom, MARGIN.top, /loss/.test(y));
  const text = (value) => metric(y, value);
  const spoken = shown.slice(0, NAMED).map((line) => `${line.name} ${text(line.y[line.y.length - 1])}`).join(", ");
  const picture = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title} by ${x}. Latest: ${spoken}` });
  picture.append(...axes(across, up, x, text), ...shown.flatMap((line) => drawn(line, across, up)));
  const marker = shape("line", { class: "marker", y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom, visibility: "hidden" });
  picture.append(marker);
  const legend = legendOf(shown, text);
  follow(picture, marker, shown, across, legend, x, text);
  return element("figure", { class: "chart" }, caption, picture, legend.root);
}

function axes(across, up, name, text) {
  const parts = [];
  const marks = up.isLog ? logTicks(up.low, up.high) : ticks(up.low, up.high, 4);
  for (const value of marks) {
    const at = up.place(value);
    parts.push(
      shape("line", { class: "grid", x1: MARGIN.left, x2: WIDTH - MARGIN.right, y1: at, y2: at }),
      shape("text", { x: MARGIN.left - 7, y: at + 4, "text-anchor": "end" }, text(value).replace(/\.0(?=\u00a0)/, "")),
    );
  }
  for (const value of ticks(across.low, across.high, 5).filter(Number.isInteger)) {
    parts.push(shape("text", { x: across.place(value), y: HEIGHT - MARGIN.bottom + 17, "text-anchor": "middle" }, short(value)));
  }
  parts.push(shape("text", { class: "axis", x: WIDTH - MARGIN.right, y: HEIGHT - 2, "text-anchor": "end" }, name));
  return parts;
}

function drawn(line, across, up) {
  const points = line.x.map((value, at) => [across.place(value), up.place(line.y[at])]);
  const kind = `line c${line.colour % COLOURS}${line.dashed ? " dashed" : ""}`;
  const path = points.map(([left, top]) => `${left.toFixed(1)},${top.toFixed(1)}`).join(" ");
  const [left, top] = points[points.length - 1];
  return [shape("polyline", { class: kind, points: path }), shape("circle", { class: `dot c${line.colour % COLOURS}`, cx: left, cy: top, r: points.length === 1 ? 4 : 2.5 })];
}

function legendOf(lines, text) {
  const values = lines.map((line) => element("b", {}, text(line.y[line.y.length - 1])));
  const items = lines.map((line, at) => {
    const sample = shape("svg", { viewBox: "0 0 20 8", class: "sample", "aria-hidden": "true" }, shape("line", { class: `line c${line.colour % COLOURS}${line.dashed ? " dashed" : ""}`, x1: 0, x2: 20, y1: 4, y2: 4 }));
    const named = lines.length <= NAMED || at === 0 || at === lines.length - 1;
    return element("li", { hidden: !named }, sample, line.name, " ", values[at]);
  });
  const place = element("span", { class: "note" }, "latest");
  return { root: element("div", { class: "legend" }, element("ul", {}, ...items), place), values, place };
}

/** Show the values under the pointer in the legend. */
function follow(picture, marker, lines, across, legend, x, text) {
  const show = (where) => {
    lines.forEach((line, at) => {
      const nearest = where === null ? line.x.length - 1 : line.x.reduce((best, value, place) => (Math.abs(value - where) < Math.abs(line.x[best] - where) ? place : best), 0);
      legend.values[at].textContent = text(line.y[nearest]);
    });
    legend.place.textContent = where === null ? "latest" : `at ${x} ${short(where)}`;
    marker.setAttribute("visibility", where === null ? "hidden" : "visible");
    if (where !== null) for (const end of ["x1", "x2"]) marker.setAttribute(end, across.place(where));
  };
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const left = ((event.clientX - box.left) / box.width) * WIDTH;
    const every = lines.flatMap((line) => line.x);
    show(every.reduce((best, value) => (Math.abs(across.place(value) - left) < Math.abs(across.place(best) - left) ? value : best), every[0]));
  });
  picture.addEventListener("pointerleave", () => show(null));
}
