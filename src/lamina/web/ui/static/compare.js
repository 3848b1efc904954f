// Two stacks answer the same question side by side; the vote is kept as a preference pair.

import { Refusal, chat, get, post } from "./api.js";
import { empty, field, h, head, say, show, table } from "./dom.js";
import { nameField } from "./exams.js";
import { count, plural } from "./format.js";

const SIDES = ["left", "right"];
const LETTER = { left: "A", right: "B" };

export async function compare([wanted], view) {
  const [known, kept] = await Promise.all([get("/ui/api/stacks"), get("/ui/api/votes")]);
  const title = "Compare";
  const draws = new Set(known.bases.filter((each) => each.modality === "image").map((each) => each.name));
  const bases = known.bases.filter((each) => !draws.has(each.name));
  const stacks = known.stacks.filter((each) => !draws.has(each.base));
  if (!bases.length) {
    show(view, head(title), empty("Nothing to talk to yet", "Pull a base, or let the quickstart train two layers, and compare their answers here.", "lamina quickstart"));
    return undefined;
  }
  const talk = new Talk(view, stacks, bases, kept);
  talk.start(wanted);
  return () => talk.stop();
}

/** What a name means now, as a fixed version: a name that moves in between must not mix answers. */
function fixed(stacks, name) {
  return stacks.find((each) => each.name === name)?.version ?? name;
}

class Talk {
  constructor(view, stacks, bases, kept) {
    Object.assign(this, { view, stacks, kept });
    this.names = [...stacks.map((each) => each.name), ...bases.map((each) => each.name)];
    this.chosen = {};
    this.columns = {};
    this.reset();
  }

  start(wanted) {
    const [first, second] = [wanted, ...this.names].filter((name, i, all) => name && all.indexOf(name) === i);
    const base = this.stacks.find((s) => s.name === first || s.version === first)?.base;
    this.chosen = { left: first, right: wanted && base && base !== first ? base : second ?? first };
    this.question = h("textarea", { rows: 2, placeholder: "Ask both…" });
    this.question.addEventListener("keydown", (e) => {
      if (e.key === "Enter" && !e.shiftKey && !e.isComposing) { e.preventDefault(); this.ask(); }
    });
    this.blind = h("input", { type: "checkbox" });
    this.blind.addEventListener("change", () => { this.restart(); });
    this.system = h("textarea", { rows: 2 });
    this.temperature = h("input", { type: "number", min: 0, max: 2, step: 0.1, value: "0.7" });
    this.longest = h("input", { type: "number", min: 1, max: 4096, step: 1, value: "256" });
    this.send = h("button", { type: "submit", class: "primary" }, "Ask both");
    this.halt = h("button", { type: "button", hidden: true, onclick: () => this.stop() }, "Stop");
    this.votes = h("div", { class: "votes" });
    this.tally = h("div", {});
    for (const side of SIDES) {
      this.columns[side] = { name: h("h2", {}), log: h("div", { class: "log", tabindex: "0", role: "log", "aria-live": "off", "aria-label": `Answers of ${LETTER[side]}` }), foot: h("p", { class: "muted small" }) };
    }
    this.view.addEventListener("keydown", (e) => { if (e.key === "Escape") this.stop(); });
    show(this.view,
      head("Compare", "The same question to two stacks, side by side. Your vote is kept as a preference pair to train on."),
      h("div", { class: "pickers card pad" }, SIDES.map((side) => nameField(`Stack ${LETTER[side]}`, this.names, this.chosen[side], (to) => { this.chosen[side] = to; this.restart(); })),
        h("label", { class: "inline" }, this.blind, "Hide who is who until I vote")),
      h("div", { class: "duel" }, SIDES.map((side) => {
        const c = this.columns[side];
        return h("section", { class: "card column", "aria-label": `Stack ${LETTER[side]}` }, h("header", {}, h("span", { class: "letter", "aria-hidden": "true" }, LETTER[side]), c.name), c.log, c.foot);
      })),
      this.votes,
      h("form", { class: "card pad composer", onsubmit: (e) => { e.preventDefault(); this.ask(); } },
        field("Your message", this.question),
        h("div", { class: "row" }, this.send, this.halt, h("button", { type: "button", class: "quiet", onclick: () => this.restart(true) }, "New conversation"),
          h("span", { class: "muted small hint" }, "Enter sends, Shift + Enter starts a line, Esc stops")),
        h("details", {}, h("summary", {}, "Settings"), h("div", { class: "settings" },
          field("System message", this.system), field("Temperature", this.temperature), field("Longest answer, in tokens", this.longest)))),
      this.tally);
    this.restart();
    this.showTally();
  }

  reset() {
    this.talk = Symbol("conversation");
    this.history = { left: [], right: [] };
    this.answers = null;
    this.order = { left: "left", right: "right" };
  }

  /** A conversation from its beginning. */
  restart(focus = false) {
    this.stop();
    this.stopping = null;
    this.busy(false);
    this.reset();
    if (this.blind.checked && Math.random() < 0.5) this.order = { left: "right", right: "left" };
    for (const side of SIDES) {
      show(this.columns[side].log, h("p", { class: "muted" }, "Its answer appears here."));
      this.columns[side].foot.textContent = "";
    }
    this.label(!this.blind.checked);
    show(this.votes);
    if (focus) this.question.focus();
  }

  label(open) {
    for (const side of SIDES) this.columns[side].name.textContent = open ? this.chosen[this.order[side]] : `Stack ${LETTER[side]}`;
  }

  model(side) { return fixed(this.stacks, this.chosen[this.order[side]]); }

  async ask() {
    const text = this.question.value.trim();
    if (!text || this.stopping) return;
    const talk = this.talk;
    const first = !this.history.left.length;
    const system = this.system.value.trim();
    const abort = new AbortController();
    this.stopping = abort;
    this.busy(true);
    show(this.votes);
    const prompts = {};
    for (const side of SIDES) {
      if (first) { show(this.columns[side].log); if (system) this.history[side].push({ role: "system", content: system }); }
      this.history[side].push({ role: "user", content: text });
      prompts[side] = [...this.history[side]];
      this.columns[side].log.append(h("div", { class: "turn user" }, text));
    }
    this.question.value = "";
    const models = { left: this.model("left"), right: this.model("right") };
    const ended = await Promise.all(SIDES.map((side) => this.answer(side, models[side], prompts[side], abort.signal)));
    if (talk !== this.talk) return; // another conversation has begun meanwhile
    this.stopping = null;
    this.busy(false);
    this.answers = { prompts, models, left: ended[0], right: ended[1] };
    SIDES.forEach((side, i) => this.history[side].push({ role: "assistant", content: ended[i].text }));
    this.offer();
    say(ended.some((e) => e.error) ? "an answer failed" : "both have answered");
  }

  async answer(side, model, messages, signal) {
    const { log, foot } = this.columns[side];
    const place = h("div", { class: "turn", "aria-busy": "true" });
    log.append(place);
    foot.textContent = "Waiting…";
    const began = performance.now();
    let text = "";
    let pieces = 0;
    let since = 0;
    const follow = () => { log.scrollTop = log.scrollHeight; };
    try {
      const body = { model, messages, temperature: Number(this.temperature.value), max_tokens: Number(this.longest.value) };
      const told = await chat(body, signal, (piece) => {
        since ||= performance.now();
        text += piece;
        pieces += 1;
        place.append(piece);
        foot.textContent = "Answering…";
        follow();
      });
      const tokens = told.usage?.completion_tokens ?? pieces;
      const seconds = (performance.now() - (since || began)) / 1000;
      const parts = [plural(tokens, "token"), `first after ${Math.round((since || performance.now()) - began)} ms`];
      if (tokens > 1 && seconds > 0) parts.push(`${count(Math.round((tokens - 1) / seconds))} tokens/s`);
      if (told.finish === "length") parts.push("cut at the longest length");
      foot.textContent = parts.join(" · ");
      if (!text) place.append(h("span", { class: "muted" }, "(an empty answer)"));
      return { text, whole: true };
    } catch (error) {
      if (error.name === "AbortError") { foot.textContent = "Stopped."; return { text, whole: false }; }
      const known = error instanceof Refusal;
      place.append(h("div", { class: "notice bad", role: "alert" }, known ? error.message : "The answer broke off.", known && error.hint ? h("div", {}, error.hint) : null));
      foot.textContent = "";
      return { text, whole: false, error };
    } finally {
      place.removeAttribute("aria-busy");
      follow();
    }
  }

  stop() {
    this.stopping?.abort();
  }

  busy(on) {
    this.send.disabled = on;
    this.halt.hidden = !on;
  }

  offer() {
    const { left, right, prompts } = this.answers;
    const reason = !left.whole || !right.whole ? "No vote: an answer is not whole."
      : left.text === right.text ? "No vote: both answers are the same."
        : !left.text || !right.text ? "No vote: an answer is empty."
          : JSON.stringify(prompts.left) !== JSON.stringify(prompts.right) ? "No vote: the conversations have parted. Vote on each answer, or start a new conversation, to compare like with like."
            : null;
    if (reason) { show(this.votes, h("p", { class: "muted" }, reason)); this.label(true); return; }
    show(this.votes, h("div", { class: "row", role: "group", "aria-label": "Which answer is better?" },
      h("span", { class: "muted" }, "Which is better?"),
      SIDES.map((side) => h("button", { type: "button", onclick: () => this.vote(side) }, `${LETTER[side]} is better`)),
      h("button", { type: "button", class: "quiet", onclick: () => { this.label(true); show(this.votes); this.question.focus(); } }, "Neither")));
  }

  async vote(preferred) {
    const { prompts, models, left, right } = this.answers;
    for (const button of this.votes.querySelectorAll("button")) button.disabled = true;
    try {
      const body = { prompt: prompts.left, preferred, left: { stack: models.left, answer: left.text }, right: { stack: models.right, answer: right.text } };
      this.kept = await post("/ui/api/votes", body);
      const better = this.answers[preferred].text;
      for (const side of SIDES) this.history[side] = [...prompts.left, { role: "assistant", content: better }];
      this.label(true);
      show(this.votes, h("p", {}, h("span", { class: "badge good" }, "kept"), ` ${models[preferred]} won. The conversation goes on from its answer.`));
      say("vote kept");
      this.showTally();
      this.question.focus();
    } catch (error) {
      show(this.votes, h("div", { class: "notice bad", role: "alert" }, h("strong", {}, error.message), error.hint ? h("p", {}, error.hint) : null),
        h("button", { type: "button", onclick: () => this.offer() }, "Try again"));
    }
  }

  showTally() {
    const { tally, count: votes, path } = this.kept;
    const where = h("p", { class: "muted small wrap note" }, votes ? "Kept in " : "Votes will be kept in ", h("code", {}, path), ", one preference pair (prompt, chosen, rejected) a line. ", h("code", {}, "lamina votes"), " shows them.");
    show(this.tally, h("section", { class: "card", "aria-label": "Votes" }, h("h2", {}, votes ? `Votes: ${count(votes)}` : "Votes"),
      votes ? table("Votes between two stacks", [
        { name: "A", cell: (r) => r.a },
        { name: "B", cell: (r) => r.b },
        { name: "A better", num: true, cell: (r) => r.a_wins },
        { name: "B better", num: true, cell: (r) => r.b_wins },
      ], tally.slice(0, 20)) : null, where));
  }
}
