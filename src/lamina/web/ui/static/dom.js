// Elements from data. Text is only ever set as text: nothing that a store or a model says is parsed.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, v] of Object.entries(value)) element.style.setProperty(key, v);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  put(element, children);
  return element;
}

function put(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === undefined || child === null || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

/** An HTML element: h("p", {class: "x", onclick: f}, "text", other). */
export function h(tag, properties, ...children) {
  return fill(document.createElement(tag), properties, children);
}

/** An SVG element. */
export function s(tag, properties, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

/** Replace what an element holds. */
export function show(element, ...children) {
  element.replaceChildren();
  put(element, children);
  return element;
}

let counter = 0;
/** A fresh id, to tie labels to fields. */
export function freshId(prefix) {
  counter += 1;
  return `${prefix}-${counter}`;
}

/** A labelled field. */
export function field(label, control) {
  control.id ||= freshId("field");
  return h("div", { class: "field" }, h("label", { for: control.id }, label), control);
}

/** Tell people who cannot see the change. */
export function say(text) {
  const place = document.getElementById("said");
  place.textContent = "";
  requestAnimationFrame(() => { place.textContent = text; });
}

/** A command to type, with a button that copies it. */
export function command(text) {
  const button = h("button", { type: "button", class: "quiet small", "aria-label": `Copy: ${text}` }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
      say("copied");
    } catch {
      button.textContent = "Select and copy";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
  return h("div", { class: "command" }, h("code", { tabindex: "0" }, text), button);
}

/** What an empty page says: why, and what to type next. */
export function empty(title, text, next) {
  const slab = (y, opacity) => s("path", { d: `M48 ${y} 92 ${y + 20} 48 ${y + 40} 4 ${y + 20}Z`, fill: "var(--slab-base)", opacity });
  const art = s("svg", { viewBox: "0 0 96 74", width: 96, height: 74, "aria-hidden": "true" }, slab(32, 0.9), slab(16, 0.5), slab(0, 0.25));
  return h("section", { class: "card empty" }, art, h("h2", {}, title), h("p", {}, text), next && command(next));
}

/** What a page says when it cannot be shown. */
export function failure(error) {
  return h("div", { class: "notice bad", role: "alert" },
    h("strong", {}, error.message),
    error.faults?.length ? h("ul", {}, error.faults.map((f) => h("li", {}, f))) : null,
    error.hint ? h("p", {}, error.hint) : null);
}

/** Head of a page. */
export function head(title, text, ...more) {
  return h("div", { class: "head" },
    h("div", {}, h("h1", {}, title), text ? h("p", {}, text) : null), more);
}

/** A definition list of small facts: pairs whose value is missing are left out. */
export function facts(pairs, kind = "") {
  const known = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return h("dl", { class: `facts ${kind}` },
    known.map(([name, value]) => h("div", { class: String(value?.textContent ?? value).length > 40 ? "wide" : null }, h("dt", {}, name), h("dd", {}, value))));
}

/** A table of columns {name, num, cell(row)}; `caption` is for screen readers unless `seen`. */
export function table(caption, columns, rows, { seen = false } = {}) {
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h("table", {},
      h("caption", { class: seen ? "" : "unseen" }, caption),
      h("thead", {}, h("tr", {}, columns.map((c) => h("th", { scope: "col", class: c.num ? "num" : "" }, c.name)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, columns.map((c, index) =>
        h(index ? "td" : "th", { scope: index ? null : "row", class: c.num ? "num" : "" }, c.cell(row))))))));
}

/** Draw a long list piece by piece: `rows` of them at first, more when asked. */
export function paged(items, draw, place, size = 60, what = "stacks") {
  let shown = 0;
  const more = h("button", { type: "button" });
  const next = () => {
    const fresh = items.slice(shown, shown + size).map(draw);
    place.append(...fresh);
    shown += fresh.length;
    more.hidden = shown >= items.length;
    more.textContent = `Show ${Math.min(size, items.length - shown)} more of ${items.length} ${what}`;
    return fresh;
  };
  more.addEventListener("click", () => {
    const [first] = next();
    first?.querySelector("a, button")?.focus();
  });
  next();
  return more;
}

/** Filters call `work` once typing pauses. */
export function later(work, milliseconds = 120) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...given), milliseconds);
  };
}
