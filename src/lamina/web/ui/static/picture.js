// The stack as a picture: slabs seen from a corner, the base below, each layer as thick as its rank.

import { s } from "./dom.js";
import { bytes, compact } from "./format.js";

const STALE = new Set(["stale", "superseded"]);

/** Pixels of a layer's edge: rank 1 is thin, each doubling adds the same. */
const thickness = (rank) => Math.min(34, 7 + 4 * Math.log2(1 + (rank ?? 1)));

function slab(cx, y, half, rise, thick, kind) {
  const left = `${cx - half} ${y + rise}`;
  const right = `${cx + half} ${y + rise}`;
  const front = y + 2 * rise;
  return s("g", { class: `slab ${kind}` },
    s("path", { class: "side-left", d: `M${left}V${y + rise + thick}L${cx} ${front + thick}V${front}Z` }),
    s("path", { class: "side-right", d: `M${right}V${y + rise + thick}L${cx} ${front + thick}V${front}Z` }),
    s("path", { class: "top", d: `M${cx} ${y}L${right}L${cx} ${front}L${left}Z` }));
}

/** The first of several wordings that fits, else the last one cut; `wide` is a letter's width. */
function fitting(texts, room, wide) {
  const most = Math.max(6, Math.floor(room / wide));
  const found = texts.find((text) => text.length <= most) ?? texts.at(-1);
  return found.length > most ? `${found.slice(0, most - 1)}…` : found;
}

/** What the picture says, for people who do not see it. */
export function described(stack) {
  const layers = stack.layers.map((l) => `${l.name}, rank ${l.rank}${STALE.has(l.state?.state) ? `, ${l.state.state}` : ""}`);
  return `Base ${stack.base.name}${layers.length ? `; above it, lowest first: ${layers.join("; ")}` : ", with no layer on it"}`;
}

/** The picture, `width` pixels wide. `picked(index)` is called when a slab is clicked. */
export function picture(stack, width, picked) {
  const half = Math.min(150, width * 0.27);
  const rise = half * 0.4;
  const cx = half + 2;
  const labels = 2 * half + 22;
  const room = width - labels;
  const many = stack.layers.length > 8;
  const apart = many ? 36 : 40; // between two labels
  const baseThick = 34;
  const drawn = [];
  const label = (at, title, texts, warn) => s("g", { class: warn ? "label warn" : "label" },
    s("path", { class: "leader", d: `M${cx + half + 3} ${at}H${labels - 6}` }),
    s("text", { class: "label-name", x: labels, y: at - 2 }, fitting([title], room, 8)),
    s("text", { class: "label-more", x: labels, y: at + 14 }, fitting(texts, room, 6.7)));
  // y grows downward; the base's upper corner is at 0, layers are above it
  let last = rise + baseThick / 2;
  let top = 0;
  drawn.push(slab(cx, 0, half, rise, baseThick, "slab-base"),
    label(last, stack.base.name, [`base · ${compact(stack.base.parameters)} parameters`, `base · ${compact(stack.base.parameters)}`]));
  stack.layers.forEach((layer, index) => {
    const thick = thickness(layer.rank) * (many ? 0.6 : 1);
    const stale = STALE.has(layer.state?.state);
    const side = 0.94 * rise + thick / 2; // from a slab's upper corner to its label
    top = Math.min(top - thick - 14, last - apart - side);
    last = top + side;
    const own = slab(cx, top, half * 0.94, rise * 0.94, thick, stale ? "slab-stale" : `slab-${1 + (index % 2)}`);
    own.addEventListener("click", () => picked?.(index));
    const rank = `rank ${layer.rank}`;
    const state = stale ? `${layer.state.state} · ` : "";
    drawn.push(own, label(last, layer.name, [`${state}${rank} · ${bytes(layer.bytes)}`, `${state}${rank}`, stale ? layer.state.state : rank], stale));
  });
  const height = 2 * rise + baseThick - top + 8;
  return s("svg", { class: "stack-picture", viewBox: `0 ${top - 4} ${width} ${height}`, width, height, role: "img", "aria-label": described(stack) }, drawn);
}

/** A thumbnail: at most six layers; the ranks are in the text beside it. */
export function thumbnail(layers) {
  const shown = layers.slice(-6);
  const step = 4.6;
  const at = (y, thick, kind) => slab(22, y, 20, 7, thick, kind);
  return s("svg", { class: "thumbnail", viewBox: "0 0 44 48", width: 44, height: 48, "aria-hidden": "true" },
    at(28, 4, "slab-base"),
    shown.map((l, i) => at(28 - step * (i + 1), 2, STALE.has(l.state) ? "slab-stale" : `slab-${1 + (i % 2)}`)));
}
