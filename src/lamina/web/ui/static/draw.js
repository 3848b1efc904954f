// Stacks over image bases draw: a prompt, some seeds, and the images as they come.

import { get, post } from "./api.js";
import { empty, failure, field, h, head, say, show } from "./dom.js";
import { nameField } from "./exams.js";

export async function draw([wanted], view) {
  const { stacks, bases } = await get("/ui/api/stacks");
  const draws = new Set(bases.filter((each) => each.modality === "image").map((each) => each.name));
  const names = [...stacks.filter((each) => draws.has(each.base)).map((each) => each.name), ...draws];
  if (!names.length) {
    show(view, head("Draw"), empty("Nothing that draws yet", "Build a small image base from captioned images, or pull a diffusers pipeline.", "lamina base build tiny-diffusion --data images.zip"));
    return undefined;
  }
  let chosen = names.includes(wanted) ? wanted : names[0];
  const prompt = h("textarea", { rows: 2, required: true, placeholder: "A red fox…" });
  const count = h("input", { type: "number", min: 1, max: 8, step: 1, value: "4" });
  const steps = h("input", { type: "number", min: 1, max: 200, step: 1, value: "25" });
  const seed = h("input", { type: "number", min: 0, step: 1, placeholder: "any" });
  const send = h("button", { type: "submit", class: "primary" }, "Draw");
  const drawn = h("div", { class: "drawn", "aria-live": "polite" });
  async function ask() {
    send.disabled = true;
    drawn.setAttribute("aria-busy", "true");
    try {
      const body = { model: chosen, prompt: prompt.value, n: count.valueAsNumber || 1, steps: steps.valueAsNumber || 25 };
      if (Number.isFinite(seed.valueAsNumber)) body.seed = seed.valueAsNumber;
      const found = await post("/v1/images/generations", body);
      show(drawn, found.data.map((each) => h("figure", { class: "card pad" },
        h("img", { src: `data:image/png;base64,${each.b64_json}`, alt: `${body.prompt}, by ${body.model}`, width: 256, height: 256 }),
        h("figcaption", { class: "muted small" }, `seed ${each.seed}`))));
      say(`${found.data.length} images drawn`);
    } catch (error) {
      show(drawn, failure(error));
    } finally {
      send.disabled = false;
      drawn.removeAttribute("aria-busy");
    }
  }
  show(view,
    head("Draw", "Images by a stack over an image base. The same stack, prompt, seed and steps draw the same image."),
    h("form", { class: "card pad composer", onsubmit: (e) => { e.preventDefault(); ask(); } },
      h("div", { class: "pickers" }, nameField("Stack", names, chosen, (to) => { chosen = to; })),
      field("What to draw", prompt),
      h("div", { class: "row" }, field("Images", count), field("Steps", steps), field("Seed", seed), send)),
    drawn);
  prompt.focus();
  return undefined;
}
