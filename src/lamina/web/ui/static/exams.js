// The exam matrix over time: a name's versions, their results and intervals.

import { get } from "./api.js";
import { fitted, intervals } from "./chart.js";
import { empty, field, freshId, h, head, show, table } from "./dom.js";
import { date, interval, isLoss, link, mark, plural, value } from "./format.js";

const MARKS = { better: ["▲", "better than the version before (paired test)"], worse: ["▼", "worse than the version before (paired test)"] };

/** A field that takes a known name, with suggestions. */
export function nameField(label, names, now, chosen) {
  const list = h("datalist", { id: freshId("names") }, names.map((name) => h("option", { value: name })));
  const input = h("input", { list: list.id, value: now, autocomplete: "off", spellcheck: "false" });
  input.addEventListener("change", () => chosen(input.value.trim(), input));
  input.addEventListener("focus", () => input.select());
  return h("div", { class: "field" }, field(label, input), list);
}

export async function exams([wanted], view) {
  const { stacks } = await get("/ui/api/stacks");
  if (!stacks.length) {
    show(view, head("Exams"), empty("No stack has a name yet", "Every layer carries an exam, and every stack that contains it inherits that exam. Train one to see its results here.", "lamina train --on smollm2-135m --data rows.jsonl --as assistant"));
    return;
  }
  const most = [...stacks].sort((a, b) => b.versions - a.versions)[0].name;
  const name = wanted ?? most;
  const found = await get(`/ui/api/exams/${encodeURIComponent(name)}`);
  const pick = nameField("Stack", stacks.map((each) => each.name), found.name, (to) => { location.hash = link("exams", to); });
  const top = head("Exams", `${found.name}: ${plural(found.versions.length, "version")}`, pick);
  if (!found.exams.length || !found.cells.length) {
    show(view, top, empty("No result is on record", "The layers of this stack carry no exam, or nobody has sat one yet.", `lamina exam ${found.name}`));
    return;
  }
  const groups = grouped(found);
  show(view, top, h("div", { class: "multiples" }, groups.map((group) => chart(found, group))), matrix(found, groups), overrides(found));
}

/** Exams of one name carried by one layer: editions, which differ where the questions changed. */
function grouped(found) {
  const cells = new Map(found.cells.map((cell) => [`${cell.stack}\n${cell.exam}`, cell]));
  const groups = new Map();
  for (const { label, exam, layer } of found.exams) {
    const id = `${layer}\n${exam}`;
    if (!groups.has(id)) groups.set(id, { exam, layer, labels: new Set() });
    groups.get(id).labels.add(label);
  }
  for (const group of groups.values()) {
    group.own = found.versions.map((v) => {
      const label = v.own.find((each) => group.labels.has(each));
      return { label, cell: label && cells.get(`${v.version}\n${label}`) };
    });
    group.editions = [...group.labels].map((label) => found.versions.map((v) => cells.get(`${v.version}\n${label}`)));
    group.before = (i) => { // the questions of the version before, where this one has others
      const then = group.own[i - 1];
      const now = then?.label && then.label !== group.own[i].label && cells.get(`${found.versions[i].version}\n${then.label}`);
      return now ? { now, then: then.cell, of: found.versions[i - 1].version.split(":")[1] } : null;
    };
  }
  return [...groups.values()].filter((group) => group.editions.some((e) => e.some(Boolean)));
}

function chart(found, group) {
  const last = group.own.findLast((o) => o.cell) ?? { cell: group.editions.flat().findLast(Boolean) };
  const { metric } = last.cell;
  const at = last.cell.stack.split(":")[1] ?? last.cell.stack;
  const title = `${group.exam}: ${value(metric, last.cell.value)} in ${at}, 95% interval ${interval(metric, last.cell.ci)}`;
  const names = found.versions.map((v) => v.version.split(":")[1] ?? v.version);
  const changed = group.labels.size > 1 ? " A line joins results on the same questions." : "";
  return h("section", { class: "card pad", "aria-label": group.exam },
    h("div", { class: "layer-head" }, h("div", {}, h("h2", { class: "wrap" }, group.exam),
      h("p", { class: "muted small" }, `carried by ${group.layer} · ${isLoss(metric) ? "loss, lower is better" : "higher is better"}.${changed}`)),
    h("strong", { class: "large" }, value(metric, last.cell.value))),
    fitted((width) => intervals({ title, names, series: group.editions, width, mark: isLoss(metric) ? mark : (v) => `${mark(100 * v)}%` })));
}

function cellView({ cell }, before) {
  if (!cell) return h("span", { class: "muted", title: "not examined" }, "–");
  return h("div", {},
    h("strong", {}, value(cell.metric, cell.value)),
    changed(cell),
    h("div", { class: "muted small nowrap" }, `${interval(cell.metric, cell.ci)} · n ${cell.n}`),
    before ? h("div", { class: "muted small nowrap" }, `on ${before.of}’s questions: ${value(before.now.metric, before.now.value)}`, changed(before.now), before.then ? `, was ${value(before.then.metric, before.then.value)}` : "") : null);
}

function changed(cell) {
  const known = MARKS[cell.change];
  return known ? h("span", { class: `mark ${cell.change}`, role: "img", "aria-label": known[1], title: known[1] }, ` ${known[0]}`) : null;
}

function matrix(found, groups) {
  const rows = found.versions.map((_, i) => i).reverse();
  return h("section", { class: "card", "aria-label": "Matrix" }, h("h2", {}, "Versions and exams"),
    table("Each version's result on each exam, with its 95% interval", [
      { name: "Version", cell: (i) => [h("a", { href: link("stack", found.versions[i].version) }, found.versions[i].version), h("div", { class: "muted small nowrap" }, date(found.versions[i].created))] },
      ...groups.map((group) => ({ name: group.exam, cell: (i) => cellView(group.own[i], group.before(i)) })),
      { name: "Gate", cell: (i) => gate(found.versions[i]) },
    ], rows),
    h("p", { class: "muted small note" }, "Value and 95% interval. ▲ better, ▼ worse than the version before (paired test on the same questions, one-sided p ≤ 0.05)."));
}

function gate(v) {
  if (v.override) return h("span", { class: "badge warn", title: v.override }, "overridden");
  if (v.passed === null || v.passed === undefined) return "–";
  return v.passed ? h("span", { class: "badge good" }, "passed") : h("span", { class: "badge bad" }, "failed");
}

function overrides(found) {
  const told = found.versions.filter((v) => v.override);
  if (!told.length) return null;
  return h("section", { class: "card pad" }, h("h2", {}, "Overrides on record"),
    h("ul", { class: "plain" }, told.map((v) => h("li", { class: "wrap" }, h("strong", {}, v.version), `: ${v.override}`))));
}
