// What each layer took to make, and what it weighs.

import { get } from "./api.js";
import { empty, facts, field, h, head, later, paged, show } from "./dom.js";
import { bytes, compact, count, date, duration, link, plural, speed } from "./format.js";

const PRICE = "lamina-price";

export async function cost(_, view) {
  const { layers } = await get("/ui/api/cost");
  if (!layers.length) {
    show(view, head("Cost"), empty("Nothing has been paid for yet", "Minutes, tokens, memory and size of every layer are recorded as it is trained.", "lamina train --on smollm2-135m --data rows.jsonl --as assistant"));
    return;
  }
  const price = h("input", { type: "number", min: 0, step: "0.01", inputmode: "decimal", placeholder: "for example 0.20" });
  try { price.value = localStorage.getItem(PRICE) ?? ""; } catch { /* not kept */ }
  const totals = h("div", {});
  const draw = () => show(totals, sums(layers, Number.parseFloat(price.value)));
  price.addEventListener("input", later(() => {
    try { localStorage.setItem(PRICE, price.value); } catch { /* not kept */ }
    draw();
  }));
  draw();
  show(view, head("Cost", `${plural(layers.length, "layer")} in named stacks, measured as they were made`, field("Price of a machine hour, in your currency", price)), totals, rows(layers));
}

function sums(layers, price) {
  const sum = (key) => layers.reduce((total, layer) => total + (layer[key] ?? 0), 0);
  const seconds = sum("seconds");
  const copies = sum("base_bytes");
  const unknown = layers.filter((layer) => layer.seconds === null).length;
  return h("section", { class: "card pad", "aria-label": "Totals" }, facts([
    ["Time", duration(seconds)],
    ["Money", price > 0 ? (price * seconds / 3600).toFixed(2) : null],
    ["Tokens trained on", compact(sum("tokens"))],
    ["Layers weigh", bytes(sum("layer_bytes"))],
    ["As whole models", copies ? bytes(copies) : null],
  ], "large"), unknown ? h("p", { class: "muted small top" }, `${plural(unknown, "layer")} without a time on record: imported, or made elsewhere.`) : null);
}

const COLUMNS = [
  { name: "Layer", key: "name", cell: (l) => [h("a", { href: link("stack", l.stacks.at(-1) ?? `@${l.layer.replace("sha256:", "")}`) }, l.name), h("div", { class: "muted small nowrap" }, [l.origin, l.author].filter(Boolean).join(" · "))] },
  { name: "Made", key: "created", cell: (l) => h("span", { class: "nowrap" }, date(l.created)) },
  { name: "Time", key: "seconds", num: true, cell: (l, most) => [duration(l.seconds), bar(l.seconds, most)] },
  { name: "Tokens", key: "tokens", num: true, cell: (l) => count(l.tokens) },
  { name: "Speed", key: "tokens_per_second", num: true, cell: (l) => speed(l.tokens_per_second) },
  { name: "Peak memory", key: "peak_bytes", num: true, cell: (l) => bytes(l.peak_bytes) },
  { name: "Size", key: "layer_bytes", num: true, cell: (l) => bytes(l.layer_bytes) },
  { name: "Hardware", key: "hardware", cell: (l) => l.hardware ?? "–" },
];

function bar(seconds, most) {
  const share = most ? Math.max(1, (100 * (seconds ?? 0)) / most) : 0;
  return h("div", { class: "meter slim", "aria-hidden": "true" }, h("span", { style: { width: `${share}%` } }));
}

function rows(layers) {
  const most = layers.reduce((m, l) => Math.max(m, l.seconds ?? 0), 0);
  const sorted = { key: "created", down: true };
  const body = h("tbody", {});
  const place = h("div", { class: "after" });
  const heads = COLUMNS.map((column) => h("th", { scope: "col", class: column.num ? "num" : "" },
    h("button", { type: "button", onclick: () => sort(column.key) }, column.name)));
  const draw = () => {
    const way = sorted.down ? -1 : 1;
    const known = [...layers].sort((a, b) => way * compare(a[sorted.key], b[sorted.key]));
    body.replaceChildren();
    show(place, paged(known, (l) => h("tr", {}, COLUMNS.map((c, i) =>
      h(i ? "td" : "th", { scope: i ? null : "row", class: c.num ? "num" : "" }, c.cell(l, most)))), body, 100, "layers"));
    COLUMNS.forEach((column, i) => {
      if (column.key === sorted.key) heads[i].setAttribute("aria-sort", sorted.down ? "descending" : "ascending");
      else heads[i].removeAttribute("aria-sort");
    });
  };
  const sort = (key) => {
    sorted.down = sorted.key === key ? !sorted.down : key !== "name";
    sorted.key = key;
    draw();
  };
  draw();
  return h("section", { class: "card", "aria-label": "Layers" }, h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Cost of each layer" },
    h("table", {}, h("caption", { class: "unseen" }, "Cost of each layer; a column's button sorts by it"), h("thead", {}, h("tr", {}, heads)), body)), place);
}

function compare(a, b) {
  if (a === null || b === null) return a === b ? 0 : a === null ? -1 : 1;
  return typeof a === "string" ? a.localeCompare(b) : a - b;
}
