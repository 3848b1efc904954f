// Everything that is asked of the server, with the key if one was given. Nothing else is ever asked.

const KEY = "lamina-key";
let asked = null; // who asks for a key when the server wants one

export const key = {
  get: () => { try { return sessionStorage.getItem(KEY) ?? ""; } catch { return ""; } },
  set: (value) => { try { value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY); } catch { /* kept nowhere */ } },
  wanted: (ask) => { asked = ask; },
};

/** A refusal, with what to do next. */
export class Refusal extends Error {
  constructor(message, { faults = [], hint = null, status = 0 } = {}) {
    super(message);
    this.faults = faults;
    this.hint = hint;
    this.status = status;
  }
}

function headers(more = {}) {
  const given = key.get();
  return given ? { ...more, Authorization: `Bearer ${given}` } : more;
}

async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: headers(options.headers) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The server does not answer.", { hint: "Is it still running? Start it again and reload this page." });
  }
  if (response.ok) return response;
  if (response.status === 401 || response.status === 403) asked?.(response.status);
  throw await refusal(response);
}

async function refusal(response) {
  let said = {};
  try { said = await response.json(); } catch { /* not JSON: the status says it */ }
  const error = said.error ?? said.detail ?? {};
  const message = typeof error === "string" ? error : error.message;
  const wanted = response.status === 401 ? "This server wants an API key: see “API key” above." : null;
  return new Refusal(message ?? `The server said ${response.status}.`, { faults: error.faults, hint: error.hint ?? wanted, status: response.status });
}

export async function get(path, options) {
  return (await request(path, options)).json();
}

export async function post(path, body) {
  const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  return (await request(path, options)).json();
}

/**
 * Stream one answer of the OpenAI chat API. `heard` gets each piece of text.
 * Returns {finish, usage}. Throws Refusal, or AbortError once the signal says stop.
 */
export async function chat(body, signal, heard) {
  const response = await request("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", Accept: "text/event-stream" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const told = { finish: null, usage: null };
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    rest += value ?? "";
    const lines = rest.split(/\r?\n/);
    rest = done ? "" : lines.pop();
    for (const line of lines) if (take(line, told, heard)) return told;
    if (done) return told;
  }
}

/** One line of a stream of events; true at the end. */
function take(line, told, heard) {
  if (!line.startsWith("data:")) return false;
  const data = line.slice(5).trim();
  if (data === "[DONE]") return true;
  const chunk = JSON.parse(data);
  if (chunk.error) throw new Refusal(chunk.error.message ?? "The answer broke off.", { hint: chunk.error.hint });
  const choice = chunk.choices?.[0];
  if (choice?.delta?.content) heard(choice.delta.content);
  told.finish = choice?.finish_reason ?? told.finish;
  told.usage = chunk.usage ?? told.usage;
  return false;
}
