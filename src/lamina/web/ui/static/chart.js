// Line charts and charts of values with intervals, as SVG in real pixels, each with its table.

import { h, s, table } from "./dom.js";

const LEFT = 48;
const RIGHT = 12;
const TOP = 10;
const BOTTOM = 24;

/** Round numbers that cover low to high. */
export function ticks(low, high, wanted = 4) {
  if (!(high > low)) { const pad = Math.abs(low) * 0.1 || 1; low -= pad; high += pad; }
  const raw = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((x) => x >= raw);
  const first = Math.floor(low / step + 1e-9);
  const last = Math.ceil(high / step - 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

/** At most `most` points, each the mean of its bucket, so that long runs stay quick to draw. */
export function thinned(points, most = 500) {
  if (points.length <= most) return points;
  const size = points.length / most;
  return Array.from({ length: most }, (_, i) => {
    const bucket = points.slice(Math.floor(i * size), Math.max(Math.floor(i * size) + 1, Math.floor((i + 1) * size)));
    const mean = (k) => bucket.reduce((sum, p) => sum + p[k], 0) / bucket.length;
    return [mean(0), mean(1)];
  });
}

function frame(width, height, xs, ys, { x, y }) {
  const px = (v) => LEFT + ((v - xs[0]) / (xs.at(-1) - xs[0] || 1)) * (width - LEFT - RIGHT);
  const py = (v) => height - BOTTOM - ((v - ys[0]) / (ys.at(-1) - ys[0] || 1)) * (height - TOP - BOTTOM);
  const grid = ys.map((v) => [
    s("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: py(v), y2: py(v) }),
    s("text", { x: LEFT - 8, y: py(v) + 4, "text-anchor": "end" }, y(v)),
  ]);
  const below = xs.map((v, i) => s("text", {
    x: px(v), y: height - 6, "text-anchor": i === 0 ? "start" : i === xs.length - 1 ? "end" : "middle",
  }, x(v)));
  return { px, py, marks: [grid, below] };
}

const path = (points, px, py) => points.map(([a, b], i) => `${i ? "L" : "M"}${px(a).toFixed(1)} ${py(b).toFixed(1)}`).join("");

/**
 * A line chart. `series`: {name, points: [[x, y]], kind: "line" | "faint" | "dots"}.
 * Values far above the bulk (a first step's loss) are cut at the edge, so that the rest can be seen.
 */
export function lines({ title, series, x, mark, width = 640, height = 240, from = null }) {
  const all = series.flatMap((each) => each.points);
  if (!all.length) return h("p", { class: "muted pad" }, "Nothing to draw yet.");
  const values = all.map((p) => p[1]).sort((a, b) => a - b);
  const low = from ?? values[0];
  const far = values[Math.floor(0.98 * (values.length - 1))];
  const high = values.at(-1) > far + 2 * (far - low) && values.length > 50 ? far + 0.2 * (far - low) : values.at(-1);
  const end = all.reduce((m, p) => Math.max(m, p[0]), 1);
  const xs = ticks(0, end, width < 420 ? 3 : 5).filter((v) => v <= end);
  if (xs.at(-1) < end) xs.push(end);
  const labelled = xs.filter((v, i) => i === xs.length - 1 || end - v > end * 0.08);
  const ys = ticks(low, high);
  const { px, py, marks } = frame(width, height, labelled, ys, { x, y: mark });
  const top = ys.at(-1);
  const drawn = series.map((each) => {
    const points = thinned(each.points).map(([a, b]) => [a, Math.min(b, top)]);
    if (each.kind === "dots") {
      return [s("path", { class: "line", d: path(points, px, py) }),
        points.map(([a, b]) => s("circle", { class: "dot", cx: px(a), cy: py(b), r: points.length > 60 ? 2 : 3.5 }))];
    }
    return s("path", { class: each.kind === "faint" ? "line faint" : "line", d: path(points, px, py) });
  });
  const chart = s("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title }, marks, drawn);
  return h("figure", { class: "figure" }, chart, series.length > 1 ? legend(series) : null);
}

function legend(series) {
  return h("div", { class: "legend", "aria-hidden": "true" }, series.map((each) =>
    h("span", {}, h("i", { class: `swatch ${each.kind === "dots" ? "dot" : each.kind}` }), each.name)));
}

/**
 * The same as a table that opens: `series()` is asked when it does, and again at each `redraw`,
 * unless somebody is inside.
 */
export function asTable({ title, series, x, y, xName, yName }) {
  const body = h("div", {});
  const details = h("details", { class: "small" }, h("summary", {}, "As a table"), body);
  const columns = [
    { name: "Series", cell: (r) => r[0] },
    { name: xName, num: true, cell: (r) => x(r[1]) },
    { name: yName, num: true, cell: (r) => y(r[2]) },
  ];
  details.redraw = () => {
    if (!details.open || body.contains(document.activeElement)) return;
    const rows = series().flatMap((each) => thinned(each.points, 40).map((p) => [each.name, ...p]));
    body.replaceChildren(table(title, columns, rows));
  };
  details.addEventListener("toggle", details.redraw);
  return details;
}

/**
 * Values over versions with their intervals. `series`: one a set of questions, each a list with a
 * {value, ci, change} or undefined for every version; sets stand a little apart where they meet.
 */
export function intervals({ title, names, series, mark, width = 320, height = 180 }) {
  const all = series.flat().filter(Boolean);
  const ends = all.flatMap((p) => [p.value, ...p.ci]);
  const ys = ticks(Math.min(...ends), Math.max(...ends), 3);
  const last = names.length - 1;
  const { px, py, marks } = frame(width, height, [0, Math.max(1, last)], ys, { x: () => "", y: mark });
  const inside = (v) => LEFT + 14 + ((v - LEFT) * (width - LEFT - RIGHT - 28)) / (width - LEFT - RIGHT);
  const at = (i) => (last === 0 ? (px(0) + px(1)) / 2 : inside(px(i)));
  const apart = Math.min(8, (width / (last + 1)) * 0.25);
  const drawn = series.map((points) => {
    const first = points.findIndex(Boolean);
    const known = points.map((p, i) => [p, i]).filter(([p]) => p);
    const x = (i) => at(i) + (series.length > 1 && known.length > 1 && i !== first ? apart : 0);
    const d = known.map(([p, i], k) => `${k ? "L" : "M"}${x(i).toFixed(1)} ${py(p.value).toFixed(1)}`).join("");
    return [s("path", { class: "line faint", d }), known.map(([p, i]) => [
      s("line", { class: "whisker", x1: x(i), x2: x(i), y1: py(p.ci[0]), y2: py(p.ci[1]) }),
      s("circle", { class: p.change === "worse" ? "dot bad" : p.change === "better" ? "dot" : "dot hollow", cx: x(i), cy: py(p.value), r: 4 }),
    ])];
  });
  const every = Math.ceil((last + 1) / Math.max(2, Math.floor((width - LEFT) / 48)));
  const below = names.map((name, i) => (i % every === 0
    ? s("text", { x: at(i), y: height - 6, "text-anchor": "middle" }, name.length > 8 ? `${name.slice(0, 7)}…` : name) : null));
  return s("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title }, marks, drawn, below);
}

/** A share between 0 and 1 with its interval, as a small bar inside text. */
export function share(value, ci) {
  const w = 96;
  return s("svg", { class: "share", viewBox: `0 0 ${w} 10`, width: w, height: 10, "aria-hidden": "true" },
    s("rect", { class: "share-all", x: 0, y: 4, width: w, height: 2, rx: 1 }),
    s("rect", { class: "share-ci", x: ci[0] * w, y: 2.5, width: Math.max(1.5, (ci[1] - ci[0]) * w), height: 5, rx: 2.5 }),
    s("circle", { class: "share-dot", cx: Math.min(w - 3, Math.max(3, value * w)), cy: 5, r: 3 }));
}

/** Draw again whenever the place gets another width; stops when the place leaves the page. */
export function fitted(draw, className = "fitted") {
  const place = h("div", { class: className });
  let last = 0;
  const observer = new ResizeObserver(([entry]) => {
    const width = Math.round(entry.contentRect.width);
    if (!place.isConnected) { observer.disconnect(); return; }
    if (width && width !== last) { last = width; place.replaceChildren(draw(width)); }
  });
  observer.observe(place);
  place.redraw = () => { if (last) place.replaceChildren(draw(last)); };
  return place;
}
