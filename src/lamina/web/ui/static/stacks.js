// All stacks: a list with a search.

import { get } from "./api.js";
import { share } from "./chart.js";
import { empty, field, h, head, later, paged, say, show, table } from "./dom.js";
import { bytes, compact, date, interval, isLoss, link, plural, value } from "./format.js";
import { thumbnail } from "./picture.js";

/** The result of one exam as text with its interval. */
export function resultText(result) {
  if (!result) return h("span", { class: "muted small" }, "not examined");
  return h("div", { class: "result" },
    h("strong", {}, value(result.metric, result.value)),
    isLoss(result.metric) ? null : share(result.value, result.ci),
    h("span", { class: "muted small" }, `${isLoss(result.metric) ? "loss, " : ""}${interval(result.metric, result.ci)}, n ${result.n}`));
}

export function stateBadge(fresh) {
  return fresh
    ? h("span", { class: "badge good" }, "current")
    : h("span", { class: "badge warn" }, "stale");
}

function row(stack) {
  const layers = stack.layers.map((l) => `${l.name} (rank ${l.rank})`).join(", ");
  return h("li", { class: "stack-row" },
    thumbnail(stack.layers),
    h("div", { class: "stack-name" },
      h("a", { href: link("stack", stack.name) }, stack.name),
      h("span", { class: "muted small" }, ` ${stack.version.split(":")[1] ?? ""}`),
      h("div", { class: "muted small wrap" }, `${stack.base} › ${layers || "no layers"}`)),
    resultText(stack.result),
    h("div", { class: "stack-state" }, stateBadge(stack.fresh),
      h("div", { class: "muted small" }, stack.created ? date(stack.created) : "")));
}

const ORDERS = {
  "Newest first": (a, b) => (b.created ?? "").localeCompare(a.created ?? "") || a.name.localeCompare(b.name),
  "Name": (a, b) => a.name.localeCompare(b.name),
  "Most layers": (a, b) => b.layers.length - a.layers.length || a.name.localeCompare(b.name),
};

export async function stacks(_, view) {
  const found = await get("/ui/api/stacks");
  document.getElementById("foot").textContent = `lamina ${found.version} · ${found.home}`;
  const title = "Stacks";
  if (!found.stacks.length && !found.bases.length) {
    show(view, head(title), empty("This store is empty", "A stack is a base with layers on it. See it all once on a small model: two layers trained, examined and stacked, in a few minutes.", "lamina quickstart"));
    return;
  }
  const stale = found.stacks.filter((each) => !each.fresh).length;
  const counts = `${plural(found.stacks.length, "stack")} on ${plural(found.bases.length, "base")}${stale ? `, ${stale} stale` : ""}`;
  show(view, head(title, counts), found.stacks.length ? list(found.stacks, stale) : noStacks(found.bases[0]), bases(found.bases));
}

function noStacks(base) {
  return empty("No layer has been trained yet", `${base.name} is here. Train a first layer on it with your own rows.`, `lamina train --on ${base.name} --data rows.jsonl --as assistant`);
}

function list(all, stale) {
  const search = h("input", { type: "search", placeholder: "Name, layer, base or author", autocomplete: "off", spellcheck: "false" });
  const order = h("select", {}, Object.keys(ORDERS).map((name) => h("option", {}, name)));
  const only = h("input", { type: "checkbox" });
  const place = h("div", {});
  const texts = new Map(all.map((each) => [each,
    [each.name, each.version, each.base, each.author, ...each.layers.map((l) => l.name)].join(" ").toLowerCase()]));
  const draw = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = all.filter((each) => (!only.checked || !each.fresh) && words.every((w) => texts.get(each).includes(w)));
    chosen.sort(ORDERS[order.value]);
    const rows = h("ul", { class: "card stack-list", "aria-label": "Stacks" });
    const more = paged(chosen, row, rows);
    show(place, chosen.length ? [rows, more] : h("p", { class: "card pad muted" }, "No stack matches."));
    return chosen.length;
  };
  const told = later(() => say(plural(draw(), "stack")));
  search.addEventListener("input", told);
  order.addEventListener("change", draw);
  only.addEventListener("change", () => say(plural(draw(), "stack")));
  draw();
  return h("section", { "aria-label": "Stacks" },
    all.length > 1 ? h("form", { class: "filters", role: "search", onsubmit: (e) => e.preventDefault() },
      field("Search", search), field("Order", order),
      stale ? h("label", { class: "inline" }, only, "Stale only") : null) : null,
    place);
}

function bases(found) {
  return h("section", { class: "card", "aria-label": "Bases" }, h("h2", {}, "Bases"),
    table("Bases in this store", [
      { name: "Name", cell: (b) => h("a", { href: link("stack", b.name) }, b.name) },
      { name: "Family", cell: (b) => b.family },
      { name: "Parameters", num: true, cell: (b) => compact(b.parameters) },
      { name: "Weights", cell: (b) => b.quantised ?? b.dtype },
      { name: "Size", num: true, cell: (b) => bytes(b.bytes) },
      { name: "Licence", cell: (b) => b.licence ?? "not stated" },
    ], found));
}
