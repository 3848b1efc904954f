// The frame: which page is shown, the theme, the key. A page is a function (parameters, view) that
// fills the view and may return what to call when it is left.

import { key } from "./api.js";
import { compare } from "./compare.js";
import { cost } from "./cost.js";
import { failure, h, say, show } from "./dom.js";
import { draw } from "./draw.js";
import { exams } from "./exams.js";
import { lineage } from "./lineage.js";
import { runs } from "./runs.js";
import { stacks } from "./stacks.js";
import { stack } from "./stack.js";

const PAGES = { stacks, stack, compare, draw, runs, exams, lineage, cost };
const IN_NAV = { stack: "stacks" };
const view = document.getElementById("view");
let leave = null;
let turn = 0;

async function route({ first = false } = {}) {
  const mine = ++turn;
  leave?.();
  leave = null;
  const [name = "stacks", ...rest] = location.hash.replace(/^#\/?/, "").split("/");
  const page = PAGES[name] ? name : "stacks";
  for (const link of document.querySelectorAll(".nav a")) {
    const here = link.getAttribute("href") === `#/${IN_NAV[page] ?? page}`;
    here ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current");
    if (here) link.scrollIntoView({ block: "nearest", inline: "center" });
  }
  const place = h("div", { class: "stacked" });
  show(view, place);
  place.setAttribute("aria-busy", "true");
  const slow = setTimeout(() => place.append(h("p", { class: "muted" }, "Reading the store…")), 300);
  try {
    const left = await PAGES[page](rest.map(decode), place);
    if (mine === turn) leave = left ?? null;
    else left?.();
  } catch (error) {
    if (error.name !== "AbortError") show(place, failure(error));
    if (!error.status && error.name !== "Refusal" && error.name !== "AbortError" && !error.hint) console.error(error);
  } finally {
    clearTimeout(slow);
    place.removeAttribute("aria-busy");
  }
  if (mine !== turn) return;
  const title = place.querySelector("h1")?.textContent;
  document.title = title ? `${title} · lamina` : "lamina";
  if (!first) {
    window.scrollTo(0, 0);
    document.getElementById("main").focus({ preventScroll: true });
    say(title ?? "");
  }
}

function decode(text) {
  try { return decodeURIComponent(text); } catch { return text; }
}

// -- theme ---------------------------------------------------------------------------------------

const THEMES = ["system", "light", "dark"];
const themeButton = document.getElementById("theme-button");

function theme() { return document.documentElement.dataset.theme ?? "system"; }

function setTheme(next) {
  if (next === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  try { next === "system" ? localStorage.removeItem("lamina-theme") : localStorage.setItem("lamina-theme", next); } catch { /* for this page only */ }
  labelTheme();
}

function labelTheme() {
  const now = theme();
  themeButton.textContent = `Theme: ${now}`;
}

themeButton.addEventListener("click", () => {
  setTheme(THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length]);
  say(`theme: ${theme()}`);
});
labelTheme();

// -- key -----------------------------------------------------------------------------------------

const dialog = document.getElementById("key-dialog");
const keyField = document.getElementById("key-field");
const keyButton = document.getElementById("key-button");

function labelKey() { keyButton.textContent = key.get() ? "API key set" : "API key"; }

function askForKey() {
  if (dialog.open) return;
  keyField.value = key.get();
  dialog.showModal();
  keyField.select();
}

keyButton.addEventListener("click", askForKey);
document.getElementById("key-cancel").addEventListener("click", () => dialog.close());
document.getElementById("key-forget").addEventListener("click", () => { key.set(""); labelKey(); dialog.close(); route(); });
document.getElementById("key-form").addEventListener("submit", () => { key.set(keyField.value.trim()); labelKey(); route(); });
key.wanted((status) => { if (status === 401) askForKey(); });
labelKey();

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the hash belongs to the pages
  document.getElementById("main").focus();
});
window.addEventListener("hashchange", () => route());
route({ first: true });
