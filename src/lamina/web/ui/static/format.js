// Numbers, times and names for people.

const plain = new Intl.NumberFormat("en");

export const count = (n) => (n === null || n === undefined ? "–" : plain.format(n));

export function compact(n) {
  if (n === null || n === undefined) return "–";
  for (const [size, unit] of [[1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(n) >= size) return `${trim(n / size)}${unit}`;
  }
  return plain.format(n);
}

const trim = (x) => (x >= 100 ? x.toFixed(0) : x.toFixed(1).replace(/\.0$/, ""));

export function bytes(n) {
  if (n === null || n === undefined) return "–";
  for (const [size, unit] of [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"]]) {
    if (n >= size) return `${trim(n / size)} ${unit}`;
  }
  return `${n} B`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 1) return `${seconds.toFixed(1)} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${trim(seconds / 60)} min`;
  return `${trim(seconds / 3600)} h`;
}

export const speed = (n) => (n === null || n === undefined ? "–" : `${plain.format(Math.round(n))} tokens/s`);
const signed = (text) => text.replace("-", "−");
export const loss = (x) => (x === null || x === undefined ? "–" : signed(x.toFixed(x !== 0 && Math.abs(x) < 0.1 ? 4 : 3)));
/** A round number beside an axis. */
export const mark = (x) => signed(plain.format(Number(x.toPrecision(6))));
export const percent = (x) => `${(100 * x).toFixed(1)}%`;
export const short = (digest) => digest.replace(/^sha256:/, "").slice(0, 12);

export const isLoss = (metric) => metric === "loss";
export const value = (metric, x) => (isLoss(metric) ? loss(x) : percent(x));
export function interval(metric, ci) {
  if (!ci) return "";
  const text = (x) => signed(isLoss(metric) ? x.toFixed(3) : (100 * x).toFixed(1));
  return `${text(ci[0])} to ${text(ci[1])}`;
}

export function date(text) {
  if (!text) return "–";
  const at = new Date(text);
  if (Number.isNaN(at.valueOf())) return text;
  return at.toLocaleString(undefined, { year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
}

export function ago(secondsSinceEpoch) {
  if (!secondsSinceEpoch) return "–";
  const passed = Math.max(0, Date.now() / 1000 - secondsSinceEpoch);
  if (passed < 5) return "just now";
  if (passed < 172800) return `${duration(passed)} ago`;
  return date(secondsSinceEpoch * 1000);
}

export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

/** A hash link to a stack, whatever its name holds. */
export const link = (page, name) => `#/${page}/${encodeURIComponent(name)}`;
