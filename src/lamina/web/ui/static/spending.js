// What a stack and all that led to it took, beside what else it could have been.

import { get } from "./api.js";
import { failure, h, show } from "./dom.js";

/** A card that fills itself; nothing of a base without layers. */
export function spending(found) {
  const body = h("div", { class: "stacked-small" }, h("p", { class: "muted" }, "Adding it up…"));
  if (!found.layers.length) return null;
  get(`/ui/api/stacks/${encodeURIComponent(found.version ?? found.name)}/cost`)
    .then((cost) => show(body, told(cost)), (error) => show(body, failure(error)));
  return h("section", { class: "card pad after spent", "aria-label": "What it cost" }, h("h2", {}, "What it cost"), body);
}

function told(cost) {
  // an image runs no script and sees nothing of the page; the theme that was chosen reaches it
  const picture = h("img", { class: "plot", src: `data:image/svg+xml,${encodeURIComponent(cost.plot)}`, alt: `Plot: ${cost.sentence}`, width: 760, height: 420 });
  return [
    h("p", { class: "wrap" }, cost.sentence),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Plot of the cost" }, picture),
    h("details", {}, h("summary", {}, "What this rests on"), h("ul", { class: "small" }, cost.assumptions.map((line) => h("li", {}, line)))),
  ];
}
