// Training runs: all of them, and one live.

import { get } from "./api.js";
import { asTable, fitted, lines } from "./chart.js";
import { command, empty, facts, h, head, paged, say, show } from "./dom.js";
import { ago, count, date, duration, link, loss, mark, plural, speed } from "./format.js";

const LIVE = new Set(["starting", "training", "landing"]);
const KINDS = { training: "good live", starting: "good live", landing: "good live", quiet: "warn", stopped: "warn", "not named": "bad", finished: "" };
const WORDS = { landing: "examining" };

const badge = (run) => h("span", { class: `badge ${KINDS[run.state]}` }, WORDS[run.state] ?? run.state);
const share = (run) => (run.state === "finished" ? 1 : run.steps ? run.step / run.steps : 0);

function left(run) {
  if (run.minutes_left !== null) return `${duration(60 * run.minutes_left)} left`;
  if (run.state === "training") return "time left not known yet";
  return "";
}

function meter(run) {
  const percent = Math.round(100 * share(run));
  return h("div", { class: run.state === "finished" ? "meter done" : "meter", role: "progressbar", "aria-valuenow": percent, "aria-valuemin": 0, "aria-valuemax": 100, "aria-label": `Steps done of ${run.name}` },
    h("span", { style: { width: `${percent}%` } }));
}

/** Call `work` every so often while the page can be seen; returns how to stop. */
function every(milliseconds, work) {
  let timer = 0;
  let stopped = false;
  const turn = async () => {
    if (!document.hidden) { try { await work(); } catch (error) { if (!stopped && error.status === 401) stopped = true; } }
    if (!stopped) timer = setTimeout(turn, milliseconds);
  };
  timer = setTimeout(turn, milliseconds);
  return () => { stopped = true; clearTimeout(timer); };
}

export async function runs([id], view) {
  return id ? one(id, view) : all(view);
}

async function all(view) {
  let before = "";
  const draw = async () => {
    const { runs: found } = await get("/ui/api/runs");
    const now = JSON.stringify(found);
    if (now === before) return;
    before = now;
    const held = document.activeElement?.getAttribute?.("href");
    fillAll(view, found);
    if (held) view.querySelector(`a[href="${CSS.escape(held)}"]`)?.focus({ preventScroll: true });
  };
  await draw();
  return every(3000, draw);
}

function fillAll(view, found) {
  if (!found.length) {
    show(view, head("Runs"), empty("No training run yet", "A run appears here the moment it starts, and stays when it has ended.", "lamina train --on smollm2-135m --data rows.jsonl --as assistant"));
    return;
  }
  found.sort((a, b) => LIVE.has(b.state) - LIVE.has(a.state)); // those at work first
  const live = found.filter((run) => LIVE.has(run.state)).length;
  const list = h("ul", { class: "card run-list", "aria-label": "Training runs" });
  const more = paged(found, row, list, 50, "runs");
  show(view, head("Runs", `${plural(found.length, "run")}${live ? `, ${live} at work` : ", none at work"}`), list, more);
}

function row(run) {
  return h("li", { class: "run-row" },
    h("div", {}, h("a", { href: link("runs", run.run) }, run.result ?? run.name), " ", badge(run),
      h("div", { class: "muted small wrap" }, `on ${run.on} · ${run.files.join(", ")} · ${date(run.created)}`)),
    h("div", { class: "run-meter" }, meter(run),
      h("div", { class: "muted small" }, [run.steps ? `step ${count(run.step)} of ${count(run.steps)}` : `step ${count(run.step)}`, left(run)].filter(Boolean).join(" · "))),
    h("div", { class: "num" }, h("strong", {}, loss(run.held_out ?? run.loss)), h("div", { class: "muted small" }, run.held_out === null ? "loss" : "held-out loss")),
    h("div", { class: "num" }, speed(run.tokens_per_second), h("div", { class: "muted small" }, LIVE.has(run.state) ? "now" : "")));
}

async function one(id, view) {
  const path = `/ui/api/runs/${encodeURIComponent(id)}`;
  const seen = { offset: 0, loss: [], held: [], speed: [], notes: [] };
  let run = null;
  const read = async () => {
    for (;;) {
      const told = await get(`${path}?offset=${seen.offset}`);
      run = told.run;
      take(told.events, seen);
      const moved = told.offset !== seen.offset;
      seen.offset = told.offset;
      if (!moved || told.events.length < 1000) return;
    }
  };
  await read();
  const step = (x) => count(Math.round(x));
  const losses = {
    title: `Loss of run ${run.name} by step`, x: step, y: loss, mark, xName: "Step", yName: "Loss",
    series: () => [{ name: "training loss", points: seen.loss, kind: "faint" }, { name: "held-out loss", points: seen.held, kind: "dots" }].filter((s) => s.points.length),
  };
  const speeds = {
    title: `Tokens a second of run ${run.name} by step`, x: step, y: step, mark, xName: "Step", yName: "Tokens a second", from: 0,
    series: () => [{ name: "tokens a second", points: seen.speed, kind: "line" }],
  };
  const drawings = [losses, speeds].flatMap((each) => [
    fitted((width) => lines({ ...each, series: each.series(), width, height: each === speeds ? 160 : width < 520 ? 220 : 300 })),
    asTable(each),
  ]);
  const [curve, curveTable, pace, paceTable] = drawings;
  const top = h("div", { class: "stacked" });
  const log = h("ol", { class: "events" });
  const fill = () => {
    show(top, heading(run), ...summary(run));
    show(log, seen.notes.slice(-30).reverse().map((n) => h("li", {}, h("span", { class: "muted small nowrap" }, ago(n.time)), " ", n.text)));
    for (const each of drawings) each.redraw();
  };
  show(view, top,
    h("section", { class: "card", "aria-label": "Loss" }, h("h2", {}, "Loss"), h("div", { class: "pad figure" }, curve, curveTable)),
    h("div", { class: "halves" },
      h("section", { class: "card", "aria-label": "Speed" }, h("h2", {}, "Tokens a second"), h("div", { class: "pad figure" }, pace, paceTable)),
      h("section", { class: "card", "aria-label": "What happened" }, h("h2", {}, "What happened"), h("div", { class: "pad" }, log))));
  fill();
  let state = run.state;
  let stop = null;
  const follow = async () => {
    const from = seen.offset;
    await read();
    if (run.state !== state) { state = run.state; say(`run ${run.name}: ${WORDS[state] ?? state}`); fill(); }
    else if (seen.offset !== from || LIVE.has(state)) fill();
    if (state === "finished") stop?.();
  };
  if (state !== "finished") stop = every(1000, follow);
  return () => stop?.();
}

function heading(run) {
  return h("div", { class: "head" }, h("div", {}, h("h1", {}, run.name), h("p", {}, badge(run), ` on ${run.on} · ${run.files.join(", ")}`)),
    run.result ? h("a", { href: link("stack", run.result) }, `Open ${run.result}`) : null);
}

function summary(run) {
  const go = { stopped: "It was stopped and can go on where it was.", quiet: `Nothing was heard of it since ${ago(run.heard)}. If it was killed, it can go on where it was.`, "not named": "It is trained, but the gate did not let its name move: see why, or override it with a reason." }[run.state];
  return [
    go ? h("div", { class: "notice" }, go, h("div", {}, command(run.part_of ?? `lamina train --resume ${run.run}`))) : null,
    h("section", { class: "card pad", "aria-label": "Progress" },
      facts([
        ["Step", run.steps ? `${count(run.step)} / ${count(run.steps)}` : count(run.step)],
        ["Loss", loss(run.loss)],
        ["Held-out loss", loss(run.held_out)],
        ["Speed", speed(run.tokens_per_second)],
        ["Time", duration(run.elapsed)],
        LIVE.has(run.state) ? ["Left", run.minutes_left === null ? "not known yet" : duration(60 * run.minutes_left)] : ["Started", date(run.created)],
      ], "large"), meter(run)),
  ];
}

function take(events, seen) {
  for (const e of events) {
    const note = (text) => seen.notes.push({ time: e.time, text });
    if (e.event === "step") {
      if (e.loss !== null) seen.loss.push([e.step, e.loss]);
      else note(`step ${e.step} was left out: the loss was not finite`);
      if (e.tokens_per_second) seen.speed.push([e.step, e.tokens_per_second]);
    } else if (e.event === "eval" && e.loss !== null) {
      seen.held.push([e.step, e.loss]);
      note(`step ${e.step}: held-out loss ${loss(e.loss)}${e.best ? ", the best so far" : ""}`);
    } else if (e.event === "ready") note("data and base are loaded");
    else if (e.event === "resumed") note(`went on from step ${e.step}`);
    else if (e.event === "planned") note(`${e.steps} of ${e.at_most} steps fit the time given`);
    else if (e.event === "interrupted") note(`stopped at step ${e.step}`);
    else if (e.event === "done") note(`done; the best was step ${e.best_step}`);
  }
}
