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

const cut = (text, room) => {
  const most = Math.max(6, Math.floor(room / 7.6));
  return text.length > most ? `${text.slice(0, most - 1)}…` : text;
};

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
  const layers = stack.layers.map((layer) => ({ layer, thick: thickness(layer.rank) * (many ? 0.6 : 1) }));
  const steps = layers.map(({ thick }) => Math.max(many ? 40 : 46, thick + 22));
  const baseThick = 34;
  const height = steps.reduce((a, b) => a + b, 0) + 2 * rise + baseThick + 8;
  let y = height - baseThick - 2 * rise - 4;
  const drawn = [];
  const label = (at, title, text, warn) => s("g", { class: warn ? "label warn" : "label" },
    s("path", { class: "leader", d: `M${cx + half + 3} ${at}H${labels - 6}` }),
    s("text", { class: "label-name", x: labels, y: at - 2 }, cut(title, room)),
    s("text", { class: "label-more", x: labels, y: at + 14 }, cut(text, room * 1.12)));
  drawn.push(slab(cx, y, half, rise, baseThick, "slab-base"),
    label(y + rise + baseThick / 2, stack.base.name, `base · ${compact(stack.base.parameters)} parameters`));
  layers.forEach(({ layer, thick }, index) => {
    y -= steps[index];
    const state = layer.state?.state;
    const stale = STALE.has(state);
    const top = y + (steps[index] - thick) - 6;
    const own = slab(cx, top, half * 0.94, rise * 0.94, thick, stale ? "slab-stale" : `slab-${1 + (index % 2)}`);
    own.addEventListener("click", () => picked?.(index));
    const at = top + rise * 0.94 + thick / 2;
    drawn.push(own, label(at, layer.name, `${stale ? `${state} · ` : ""}rank ${layer.rank} · ${bytes(layer.bytes)}`, stale));
  });
  return s("svg", { class: "stack-picture", viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": described(stack) }, drawn);
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
