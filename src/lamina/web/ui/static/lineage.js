// Every named version with what it stands on, replaced and was made from: lanes beside a list.

import { get } from "./api.js";
import { empty, h, head, s, show } from "./dom.js";
import { nameField } from "./exams.js";
import { date, link, plural, value } from "./format.js";

const ROW = 64;
const LANE = 18;
const SIZE = 60;
const LANES = 10;

export async function lineage([wanted], view) {
  const path = wanted ? `/ui/api/lineage?name=${encodeURIComponent(wanted)}` : "/ui/api/lineage";
  const [{ nodes }, { stacks }] = await Promise.all([get(path), get("/ui/api/stacks")]);
  if (!stacks.length) {
    show(view, head("Lineage"), empty("No version has a name yet", "Every time a name moves, the version it leaves behind stays. They appear here with what they stand on.", "lamina train --on smollm2-135m --data rows.jsonl --as assistant"));
    return;
  }
  const pick = nameField("Only what one stack came from", ["", ...stacks.map((each) => each.name)], wanted ?? "", (to) => {
    location.hash = to ? link("lineage", to) : "#/lineage";
  });
  show(view, head("Lineage", plural(nodes.length, "version"), pick), key(), graph(nodes));
}

function key() {
  const mark = (kind, text) => h("span", {}, s("svg", { class: "lineage-key", viewBox: "0 0 28 8", width: 28, height: 8, "aria-hidden": "true" },
    s("line", { class: `edge ${kind}`, x1: 1, x2: 27, y1: 4, y2: 4 })), text);
  return h("div", { class: "legend" }, mark("stands", "stands on"), mark("supersedes", "supersedes"), mark("made", "made from, carried from or same as"));
}

const kindOf = (kind) => (kind === "stands on" ? "stands" : kind === "supersedes" ? "supersedes" : "made");

/**
 * Lanes: nodes come newest first. An edge goes down a lane of its own until its end's row; a node
 * sits in the leftmost lane that waits for it. Returns {lane of each node, edges with their lane}.
 */
export function lanes(nodes) {
  const index = new Map(nodes.map((node, i) => [node.version, i]));
  const waiting = []; // lane -> index of the node that it leads to
  const place = [];
  const edges = [];
  nodes.forEach((node, i) => {
    const mine = waiting.flatMap((to, lane) => (to === i ? [lane] : []));
    for (const lane of mine) waiting[lane] = undefined;
    const lane = mine[0] ?? free(waiting);
    place[i] = lane;
    let own = true;
    for (const edge of node.edges) {
      const to = index.get(edge.to);
      if (to === undefined) continue;
      let by = waiting.indexOf(to);
      if (by < 0) { by = own && waiting[lane] === undefined ? lane : free(waiting); waiting[by] = to; }
      if (by === lane) own = false;
      edges.push({ from: i, to, lane: by, kind: kindOf(edge.kind) });
    }
  });
  return { place, edges };
}

function free(waiting) {
  const found = waiting.findIndex((to) => to === undefined);
  return found < 0 ? waiting.length : found;
}

function graph(nodes) {
  const { place, edges } = lanes(nodes);
  const x = (lane) => 14 + Math.min(lane, LANES) * LANE;
  const y = (i) => i * ROW + 22;
  const wide = Math.min(LANES, edges.reduce((m, e) => Math.max(m, e.lane), Math.max(0, ...place)));
  const width = x(wide) + 14;
  const list = h("ol", { class: "lineage-list", "aria-label": "Versions, newest first" });
  const art = s("svg", { class: "lineage-lanes", width, "aria-hidden": "true" });
  const more = h("button", { type: "button" });
  let shown = 0;
  const next = () => {
    const upto = Math.min(nodes.length, shown + SIZE);
    list.append(...nodes.slice(shown, upto).map(row));
    const fresh = edges.filter((e) => e.from < upto && e.to >= shown && (e.from >= shown || e.to >= shown));
    art.prepend(...fresh.map((e) => s("path", { class: `edge ${e.kind}`, d: curve(x(place[e.from]), y(e.from), x(e.lane), x(place[e.to]), y(e.to)) })));
    art.append(...nodes.slice(shown, upto).map((node, k) => s("circle", {
      class: `node ${node.stale ? "stale" : ""}`, cx: x(place[shown + k]), cy: y(shown + k), r: 5.5 })));
    const first = list.children[shown];
    shown = upto;
    art.setAttribute("height", shown * ROW);
    art.setAttribute("viewBox", `0 0 ${width} ${shown * ROW}`);
    more.hidden = shown >= nodes.length;
    more.textContent = `Show ${Math.min(SIZE, nodes.length - shown)} more of ${nodes.length} versions`;
    return first;
  };
  more.addEventListener("click", () => next()?.querySelector("a")?.focus());
  next();
  return h("section", { "aria-label": "Graph" }, h("div", { class: "card lineage" }, h("div", { class: "lineage-art" }, art), list), more);
}

/** Out of a node into the edge's lane, straight down, and into the older node. */
function curve(x1, y1, lane, x2, y2) {
  const bend = Math.min(ROW * 0.8, (y2 - y1) / 2);
  const out = lane === x1 ? "" : `C${x1} ${y1 + bend * 0.6} ${lane} ${y1 + bend * 0.4} ${lane} ${y1 + bend}`;
  const into = lane === x2 ? `V${y2}` : `V${y2 - bend}C${lane} ${y2 - bend * 0.4} ${x2} ${y2 - bend * 0.6} ${x2} ${y2}`;
  return `M${x1} ${y1}${out}${into}`;
}

function row(node) {
  const kinds = new Map();
  for (const edge of node.edges) kinds.set(edge.kind, [...(kinds.get(edge.kind) ?? []), edge.to]);
  const came = [...kinds].flatMap(([kind, to]) => [`${kind} `, ...to.flatMap((t, i) => [i ? ", " : "", h("a", { href: link("stack", t) }, t)]), "; "]).slice(0, -1);
  const results = node.exams.map((e) => `${e.exam} ${value(e.metric, e.value)}`).join(", ");
  return h("li", {},
    h("div", { class: "one-line" }, h("a", { class: "strong", href: link("stack", node.version) }, node.version), " ",
      node.stale ? h("span", { class: "badge warn" }, "stale") : null,
      h("span", { class: "muted small" }, ` ${node.layers.join(" › ")}`)),
    h("div", { class: "muted small one-line" }, came, came.length ? " · " : "", date(node.created), node.author ? ` · ${node.author}` : "", results ? ` · ${results}` : ""));
}
