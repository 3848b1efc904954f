// The exam matrix over time: a name's versions, their results and intervals.

import { get } from "./api.js";
import { fitted, intervals } from "./chart.js";
import { empty, field, freshId, h, head, show, table } from "./dom.js";
import { date, interval, isLoss, link, loss, percent, plural, value } from "./format.js";

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
  const top = head("Exams", `${found.name}: ${plural(found.versions.length, "version")}, ${plural(found.exams.length, "exam")}`, pick);
  if (!found.exams.length || !found.cells.length) {
    show(view, top, empty("No result is on record", "The layers of this stack carry no exam, or nobody has sat one yet.", `lamina exam ${found.name}`));
    return;
  }
  const cells = new Map(found.cells.map((cell) => [`${cell.stack}\n${cell.exam}`, cell]));
  show(view, top, charts(found, cells), matrix(found, cells), overrides(found));
}

function charts(found, cells) {
  return h("div", { class: "multiples" }, found.exams.map(({ exam, layer }) => {
    const points = found.versions.map((v) => {
      const cell = cells.get(`${v.version}\n${exam}`);
      return { label: v.version.split(":")[1] ?? v.version, value: cell?.value ?? null, ci: cell?.ci, change: cell?.change, metric: cell?.metric };
    });
    const known = points.filter((p) => p.value !== null);
    if (!known.length) return null;
    const metric = known[0].metric;
    const last = known.at(-1);
    const title = `${exam}: ${value(metric, last.value)} in ${last.label}, 95% interval ${interval(metric, last.ci)}; ${isLoss(metric) ? "lower" : "higher"} is better`;
    return h("section", { class: "card pad", "aria-label": exam },
      h("div", { class: "layer-head" }, h("div", {}, h("h2", { class: "wrap" }, exam),
        h("p", { class: "muted small" }, `carried by ${layer} · ${isLoss(metric) ? "loss, lower is better" : "higher is better"}`)),
      h("strong", { class: "large" }, value(metric, last.value))),
      fitted((width) => intervals({ title, points, width, y: isLoss(metric) ? loss : percent })));
  }));
}

function cellView(cell) {
  if (!cell) return h("span", { class: "muted", title: "not examined" }, "–");
  const mark = MARKS[cell.change];
  return h("div", {},
    h("strong", {}, value(cell.metric, cell.value)),
    mark ? h("span", { class: `mark ${cell.change}`, role: "img", "aria-label": mark[1], title: mark[1] }, ` ${mark[0]}`) : null,
    h("div", { class: "muted small nowrap" }, `${interval(cell.metric, cell.ci)} · n ${cell.n}`));
}

function matrix(found, cells) {
  const rows = [...found.versions].reverse();
  return h("section", { class: "card", "aria-label": "Matrix" }, h("h2", {}, "Versions and exams"),
    table("Each version's result on each exam, with its 95% interval", [
      { name: "Version", cell: (v) => [h("a", { href: link("stack", v.version) }, v.version), h("div", { class: "muted small nowrap" }, date(v.created))] },
      ...found.exams.map(({ exam }) => ({ name: exam, cell: (v) => cellView(cells.get(`${v.version}\n${exam}`)) })),
      { name: "Gate", cell: (v) => gate(v) },
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
