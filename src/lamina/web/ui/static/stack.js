// One stack: the picture, and its layers with what is on record about each.

import { get } from "./api.js";
import { fitted, share } from "./chart.js";
import { command, empty, facts, field, h, show } from "./dom.js";
import { bytes, compact, count, date, duration, interval, isLoss, link, percent, plural, short, speed, value } from "./format.js";
import { picture } from "./picture.js";
import { spending } from "./spending.js";
import { stateBadge } from "./stacks.js";

export async function stack([reference = ""], view) {
  const found = await get(`/ui/api/stacks/${encodeURIComponent(reference)}`);
  const name = found.name.split(":")[0];
  const cards = found.layers.map(layerCard);
  const pick = (index) => {
    cards[index].scrollIntoView({ block: "center", behavior: "smooth" });
    cards[index].focus({ preventScroll: true });
  };
  const art = h("section", { class: "card pad art", "aria-label": "Picture of the stack" },
    fitted((width) => picture(found, width, pick)));
  const above = found.layers.length
    ? cards.reverse()
    : [empty("A bare base", "Nothing has been trained on it in this stack.", `lamina train --on ${found.base.name} --data rows.jsonl --as assistant`)];
  show(view,
    heading(found, name),
    staleNotice(found, name),
    h("div", { class: "two" }, h("div", { class: "sticky" }, art, use(found)),
      h("div", { class: "layers" }, above, baseCard(found.base))),
    spending(found));
}

function heading(found, name) {
  const version = found.version ?? found.name;
  const text = h("span", {}, found.fresh === null ? null : [stateBadge(found.fresh), " "],
    !found.latest && found.version ? [h("span", { class: "badge" }, "older version"), " "] : null,
    h("span", { class: "mono", title: found.stack }, `@${short(found.stack)}`));
  const choice = found.versions.length > 1 ? h("select", { onchange: (e) => { location.hash = link("stack", e.target.value); } },
    found.versions.map((v) => h("option", { value: v.version, selected: v.version === version }, `${v.version}${v.latest ? " (now)" : ""}`))) : null;
  return h("div", { class: "head" },
    h("div", {}, h("h1", {}, version), h("p", {}, text)),
    h("div", { class: "row" },
      choice ? field("Version", choice) : null,
      h("div", { class: "links" },
        h("a", { href: link("compare", found.version ?? found.name) }, "Compare"),
        found.version ? [h("a", { href: link("exams", name) }, "Exams"), h("a", { href: link("lineage", name) }, "Lineage")] : null)));
}

function staleNotice(found, name) {
  if (found.fresh !== false) return null;
  const because = found.layers.filter((l) => l.state && !["current", "carried"].includes(l.state.state)).map(stateText);
  return h("div", { class: "notice" }, h("strong", {}, "This stack stands on old versions. "), because.join("; "), ".",
    found.latest ? h("div", {}, command(`lamina refresh ${name}`)) : null);
}

function stateText(layer) {
  const state = layer.state;
  if (state.state === "superseded") return `${layer.name} is superseded by ${state.superseded_by_name ?? `@${short(state.superseded_by)}`}`;
  const names = [...new Set(state.because.map((b) => b.name))].join(", ");
  return `${layer.name} is stale: ${names} changed beneath it`;
}

function use(found) {
  const body = JSON.stringify({ model: found.name, messages: [{ role: "user", content: "Hello" }] });
  return h("details", { class: "card pad use" }, h("summary", {}, "Use it"),
    h("div", { class: "stacked-small" },
      command(`lamina chat ${found.name}`),
      command(`curl ${location.origin}/v1/chat/completions -H 'Content-Type: application/json' -d '${body}'`)));
}

// -- layers --------------------------------------------------------------------------------------

function badges(layer) {
  const state = layer.state?.state;
  const told = [];
  if (state === "stale" || state === "superseded") told.push(h("span", { class: "badge warn" }, state));
  else if (state) told.push(h("span", { class: "badge good" }, state));
  if (!["trained", state].includes(layer.origin)) told.push(h("span", { class: "badge" }, layer.origin));
  if (layer.weight !== 1) told.push(h("span", { class: "badge" }, `weight ${layer.weight}`));
  return h("span", { class: "row" }, told);
}

function layerCard(layer) {
  const { data, recipe, cost } = layer;
  return h("article", { class: "card pad layer", tabindex: "-1", "aria-label": `Layer ${layer.name}` },
    h("div", { class: "layer-head" }, h("h2", {}, layer.name), badges(layer)),
    facts([
      ["Rank", layer.rank],
      ["Size", bytes(layer.bytes)],
      ["Parameters", compact(layer.parameters)],
      ["Author", layer.author ?? "not stated"],
      ["Has the work of", layer.credits.length ? layer.credits.map(credited).join(", ") : null],
      ["Licence", layer.licence ?? "not stated"],
      ["Trained in", cost ? duration(cost.seconds) : null],
    ]),
    results(layer),
    h("details", {}, h("summary", {}, "Recipe, data and origin"), facts([
      ["Digest", h("span", { class: "mono" }, layer.layer)],
      ["Learned from", data ? `${plural(data.rows, "row")}, ${count(data.tokens)} tokens` : null],
      ["Files", data?.files.map((f) => f.name).join(", ")],
      ["Data licence", data?.licence],
      ["Rehearsal set", layer.rehearsal],
      ["Scaling", `alpha ${layer.alpha} (${layer.scaling}), ${layer.linears} linears`],
      ["Learning rate", recipe?.lr],
      ["Steps", recipe?.steps ? `${recipe.steps} of ${count(recipe.batch_tokens)} tokens, seed ${recipe.seed}` : null],
      ["Speed", cost ? speed(cost.tokens_per_second) : null],
      ["Peak memory", cost ? bytes(cost.peak_bytes) : null],
      ["Hardware", cost?.hardware],
      ["Made", cost ? date(cost.created) : null],
      ["Certificate", layer.certificate ? `${layer.certificate.method}: rank ${layer.certificate.rank}, was ${layer.certificate.rank_before}; ${percent(layer.certificate.discarded)} left out` : null],
    ])));
}

function credited({ author, name, layer, share }) {
  return `${author ?? "unknown"} (${name ?? `@${layer.slice(7, 19)}`}${share === null ? "" : `, ${percent(share)}`})`;
}

function results(layer) {
  if (!layer.results.length) return h("p", { class: "muted small" }, "It carries no exam.");
  return h("ul", { class: "results", "aria-label": "Exam results" }, layer.results.map((r) => h("li", {},
    h("span", { class: "wrap" }, r.exam, r.withheld ? h("span", { class: "muted small" }, " (questions withheld)") : null),
    r.value === null
      ? h("span", { class: "muted small" }, `not examined, ${plural(r.questions, "question")}`)
      : h("span", { class: "result" },
        h("strong", {}, value(r.metric, r.value)),
        isLoss(r.metric) ? null : share(r.value, r.ci),
        h("span", { class: "muted small" }, `${interval(r.metric, r.ci)}, n ${r.n}`)))));
}

function baseCard(base) {
  return h("article", { class: "card pad layer base", "aria-label": `Base ${base.name}` },
    h("div", { class: "layer-head" }, h("h2", {}, base.name), h("span", { class: "badge" }, "base")),
    facts([
      ["Family", base.family],
      ["Parameters", compact(base.parameters)],
      ["Weights", base.quantised ?? base.dtype],
      ["Size", bytes(base.bytes)],
      ["Licence", base.licence ?? "not stated"],
      ["Source", base.source],
    ]));
}
