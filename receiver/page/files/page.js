// The page: one stream of readings for all its tabs, shown as text and charts. Nothing is ever parsed as HTML.
"use strict";

const HISTORY_MS = 15 * 60 * 1000;
const POINT_MS = 5000;
// Readings come once a second. After this long without one the page says so, and asks by itself.
const SILENT_MS = 3000;
const ASK_MS = 2000;
const RESTART_MS = 10000;
const CHANGES_SHOWN = 12;
const FAILED_MS = 10000;
const LOCK = "presence-stream";

const $ = (id) => document.getElementById(id);
let history = [];
let heardAt = 0;
let startedAt = 0;
let failedShown = null;
let failedAt = 0;

// --- Text ---------------------------------------------------------------------------------------------------------

// Control and format characters could hide or reverse the text beside them, so they are shown as their numbers.
const safe = (text) =>
  String(text ?? "").replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Co}\p{Cs}]/gu, (c) => `\\u{${c.codePointAt(0).toString(16)}}`);

const number = (value, digits = 0) =>
  value === null || value === undefined ? "–" : Number(value).toLocaleString("en", { maximumFractionDigits: digits });

const counted = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;

const rate = (value) => number(value, value >= 10 ? 0 : 1);

const clock = (ms) => (ms ? new Date(Number(ms)).toLocaleTimeString() : "–");

function span(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 1) return `${number(seconds * 1000)} ms`;
  if (seconds < 120) return `${number(seconds)} s`;
  return seconds < 7200 ? `${number(seconds / 60)} min` : `${number(seconds / 3600)} h`;
}

const ago = (ms, now) => `${span(Math.max(0, now - ms) / 1000)} ago`;

function size(bytes) {
  for (const [limit, unit] of [[2 ** 30, "GB"], [2 ** 20, "MB"], [2 ** 10, "kB"]]) {
    if (bytes >= limit) return `${number(bytes / limit, 1)} ${unit}`;
  }
  return `${number(bytes)} bytes`;
}

function make(tag, text = "", ...children) {
  const element = document.createElement(tag);
  if (text !== "") element.textContent = text;
  element.append(...children);
  return element;
}

// A user's id may be written from right to left: it must not turn the text around it.
const id = (text) => make("bdi", safe(text) || "(empty)");

// A user's id that looks the user up.
function link(user) {
  const button = make("button", "", id(user));
  button.className = "link";
  button.addEventListener("click", () => lookUp(user));
  return button;
}

const row = (...cells) => make("tr", "", ...cells.map((cell) => make("td", "", cell)));

// --- What is shown ------------------------------------------------------------------------------------------------

function show(now) {
  heardAt = Date.now();
  $("connection").textContent = "";
  const count = now.problems.length;
  $("health").textContent = now.healthy ? "healthy" : count === 1 ? "not healthy" : `not healthy, ${count} reasons`;
  $("health").className = now.healthy ? "good" : "bad";
  document.title = `${now.healthy ? "" : "✗ "}Presence`;
  $("reasons").hidden = !count && !now.notes.length;
  $("problems").replaceChildren(...now.problems.map((text, index) => {
    const item = make("li", safe(text));
    if (now.mends?.[index]) item.append(make("div", safe(now.mends[index])));
    return item;
  }));
  $("notes").replaceChildren(...now.notes.map((text) => make("li", safe(text))));
  showFlow(now);
  showCharts(now);
  showChanges(now);
  showCallbacks(now);
  showPrograms(now);
  const failed = now.queue ? now.queue.failed : null;
  // If one fails while another is requeued, the number stays the same, but the list changes.
  if (failed === null) $("failed-note").textContent ||= "Not known.";
  if (failed !== failedShown || (failed && Date.now() - failedAt > FAILED_MS)) {
    failedShown = failed;
    failedAt = Date.now();
    void showFailed();
  }
}

function showFlow(now) {
  const here = now.receiver_here ?? {};
  const queue = now.queue;
  const away = now.redis.presence.error;
  const waits = queue?.oldest_ms ? `oldest ${span((now.at - queue.oldest_ms) / 1000)}` : "nothing waits";
  const steps = [
    ["OpenIM", `${rate(now.callbacks?.rate)}/s`, "callbacks", false],
    ["Receiver", here.status ?? "unknown", `${number(now.callbacks?.refused ?? null)} refused`, here.status === "not ready"],
    ["Journal", number(here.journal_events ?? null), "events waiting", here.redis === "down"],
    ["Queue", queue ? number(queue.jobs) : "away", queue ? `batches, ${waits}` : "no answer", !queue],
    ["Workers", now.workers ? number(now.workers.length) : "–", `${rate(now.rates.events)} events/s`, now.workers?.length === 0],
    ["Presence", away ? "away" : number(now.users_online), away ? "no answer" : "users online", now.users_online === null],
    ["Changes", `${rate(now.rates.changes)}/s`, "to your services", false],
  ];
  $("flow").replaceChildren(...steps.map(([name, figure, text, bad]) => {
    const item = make("li", "", make("span", name), make("b", figure), make("span", text));
    item.lastChild.className = "soft";
    if (bad) item.className = "bad";
    return item;
  }));
}

const CHARTS = [
  ["users", "users online", (value) => number(value)],
  ["callbacks", "callbacks accepted a second", rate],
  ["events", "events applied a second", rate],
  ["lag", "99 of 100 events applied within", span],
];

function showCharts(now) {
  const point = {
    at: now.at, users: now.users_online, callbacks: now.callbacks?.rate ?? null,
    events: now.rates.events, changes: now.rates.changes, lag: now.lag_seconds_now?.p99 ?? null,
  };
  const last = history.at(-1);
  // The newest point moves until its five seconds are over.
  if (last?.moving) history.pop();
  const fixed = history.at(-1);
  history.push({ ...point, moving: fixed && now.at - fixed.at < POINT_MS });
  history = history.filter((each) => each.at > now.at - HISTORY_MS);
  $("charts").replaceChildren(...CHARTS.map(([name, title, text]) => chart(name, title, text, now.at)));
}

function chart(name, title, text, now) {
  const values = history.map((each) => each[name]);
  const known = values.filter((value) => value !== null && value !== undefined);
  const most = Math.max(1e-9, ...known);
  const current = values.at(-1) ?? null;
  let path = "";
  let pen = "M";
  history.forEach((each, index) => {
    if (values[index] === null || values[index] === undefined) {
      pen = "M"; // a gap: not known then
      return;
    }
    const x = 100 * (1 - (now - each.at) / HISTORY_MS);
    path += `${pen}${x.toFixed(2)} ${(38 - 36 * (values[index] / most)).toFixed(2)}`;
    pen = "L";
  });
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 100 40");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `${title}: ${text(current)} now, ${known.length ? text(Math.max(...known)) : "–"} at most`);
  for (const [name, d] of [["ground", "M0 39.5H100"], ["line", path]]) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", "path");
    element.setAttribute("class", name);
    element.setAttribute("d", d);
    svg.append(element);
  }
  const figure = make("span", text(current));
  figure.className = "figure";
  return make("figure", "", figure, make("figcaption", title), svg);
}

function showChanges(now) {
  // Rows do not move under a pointer or under the keyboard's focus, and stay while presence is away.
  if (now.redis.presence.error) {
    if (!$("changes").children.length) $("changes").append(row("not known", "", "", ""));
    return;
  }
  if ($("changes").matches(":hover, :focus-within")) return;
  const changes = (now.changes_newest ?? []).slice(0, CHANGES_SHOWN);
  $("changes").replaceChildren(...changes.map((each) => {
    return row(clock(each.changed_at), link(each.user_id), safe(each.status), safe(each.command));
  }));
  if (!changes.length) $("changes").append(row("none yet", "", "", ""));
}

function showCallbacks(now) {
  const here = now.receiver_here ?? {};
  $("callbacks").replaceChildren(...(here.callbacks ?? []).map((each) =>
    row(safe(each.command), safe(each.peer), ago(each.at_ms, now.at))));
  if (!here.callbacks?.length) $("callbacks").append(row("none yet", "", ""));
  const refused = here.refused ?? [];
  $("refused").hidden = !refused.length;
  $("refusals").replaceChildren(...refused.map((each) => make("li",
    `${number(each.count)} × ${each.status} ${safe(each.reason)}${each.detail ? ` (${safe(each.detail)})` : ""}; the last ` +
    `${ago(each.at_ms, now.at)} from ${safe(each.peer)}${each.probe ? ", not from OpenIM" : ""}`)));
}

function showPrograms(now) {
  const rows = [];
  for (const each of now.receivers ?? []) {
    rows.push(row("receiver", safe(each.name), `heard ${ago(each.at_ms, now.at)}, ${counted(each.events, "event")} in its journal`));
  }
  for (const each of now.workers ?? []) {
    rows.push(row("worker", safe(each.name), `${safe(each.state)}, up ${span((now.at - each.since_ms) / 1000)}`));
  }
  for (const each of now.gateways ?? []) {
    rows.push(row("OpenIM gateway", safe(`${each.peer}, pid ${each.pid}`),
      `${safe(each.state)}, heard ${ago(each.last_at_ms, now.at)}, ${each.lost === null ? safe(each.note) : `batches lost: ${number(each.lost)}`}`));
  }
  const compared = now.reconcile;
  if (compared?.compared_at_ms) {
    const found = Object.entries(compared.found).map(([name, count]) => `${number(count)} ${safe(name)}`);
    rows.push(row("compared with OpenIM", ago(compared.compared_at_ms, now.at), found.join(", ")));
  }
  for (const [role, each] of Object.entries(now.redis)) {
    const how = each.error ? make("span", safe(each.error)) : `${safe(each.version)}, ${size(each.used_bytes)} used`;
    if (each.error) how.className = "bad";
    rows.push(row(`Redis for ${role === "queue" ? "the queue" : "presence"}`, safe(each.url), how));
  }
  $("programs").replaceChildren(...rows);
}

// --- Asking -------------------------------------------------------------------------------------------------------

// location.origin has no password: a browser refuses to fetch a URL that has one.
async function ask(path, options = {}) {
  const answer = await fetch(location.origin + path, { signal: AbortSignal.timeout(8000), ...options });
  if (!answer.ok) throw new Error((await answer.text()).trim() || `the answer is ${answer.status}`);
  return answer.json();
}

async function lookUp(user) {
  $("user").value = user;
  $("answer").replaceChildren(make("p", "Looking…"));
  try {
    const why = await ask(`/api/users?id=${encodeURIComponent(user)}`);
    const { user_id: _, reason, notes = [], ...rest } = why;
    const details = make("details", "", make("summary", "All facts"), facts(rest));
    $("answer").replaceChildren(
      make("p", safe(reason)), make("ul", "", ...notes.map((note) => make("li", safe(note)))), details);
  } catch (error) {
    $("answer").replaceChildren(make("p", safe(error.message)));
  }
}

// Shows whatever `presence why` says as lists in lists, so new facts need no change here.
function facts(value) {
  if (Array.isArray(value)) return make("ol", "", ...value.map((each) => make("li", "", facts(each))));
  // Numbers of this size are times; a seq is text.
  if (typeof value === "number" && value > 1e12) return document.createTextNode(new Date(value).toLocaleString());
  if (value === null || typeof value !== "object") return document.createTextNode(safe(value));
  const list = make("dl");
  for (const [name, each] of Object.entries(value)) {
    if (each === null || each === "" || (Array.isArray(each) && !each.length)) continue;
    list.append(make("dt", safe(name).replaceAll("_", " ")), make("dd", "", facts(each)));
  }
  return list;
}

async function showFailed() {
  try {
    const { failed, count, may_act: mayAct } = await ask("/api/failed");
    const more = count > failed.length ? ` The first ${number(failed.length)} of ${number(count)}:` : "";
    const how = mayAct ? "" : " Set PRESENCE_ADMIN_AUTH to requeue or drop them here; presence failed does it in a terminal.";
    $("failed-note").textContent = count ? `Fix the cause, then requeue.${how}${more}` : "None.";
    $("failed").replaceChildren(...failed.map((each) => failedBatch(each, mayAct)));
  } catch (error) {
    $("failed-note").textContent = safe(error.message);
  }
}

function failedBatch(batch, mayAct) {
  const users = [...new Set(batch.events.map((event) => event.user_id))].slice(0, 5);
  const item = make("li", `${clock(batch.failed_at)} `, ...users.flatMap((user) => [link(user), " "]), `${safe(batch.error)} `);
  if (mayAct) {
    for (const [action, name] of [["requeue", "Requeue"], ["drop", "Drop"]]) {
      const button = make("button", name);
      button.setAttribute("aria-label", `${name} the batch of ${users.map(safe).join(", ")}`);
      button.addEventListener("click", () => act(action, batch, item));
      item.append(button, " ");
    }
  }
  return item;
}

async function act(action, batch, item) {
  if (action === "drop" && !confirm("Drop this batch for good? What it says of its users is lost.")) return;
  try {
    const body = JSON.stringify({ ids: [batch.id] });
    await ask(`/api/failed/${action}`, { method: "POST", headers: { "Content-Type": "application/json" }, body });
    failedShown = null;
    await showFailed();
  } catch (error) {
    item.append(make("p", safe(error.message)));
  }
}

// --- Listening ----------------------------------------------------------------------------------------------------

// A browser opens at most six connections to a host, so one visible tab listens and tells the others. Browsers give
// locks only to pages of this machine or with HTTPS; without a lock each visible tab listens for itself.
const channel = new BroadcastChannel(LOCK);
channel.onmessage = ({ data: [name, data] }) => {
  if (name !== "new") hear(name, data);
  else if (leads) channel.postMessage(["history", history]);
};
let leads = false;
let stopListening = () => {};

function hear(name, data) {
  if (name === "history") history = data;
  else show(data);
}

function listen() {
  leads = true;
  const source = new EventSource("/api/stream");
  for (const name of ["history", "status"]) {
    source.addEventListener(name, (event) => {
      const data = JSON.parse(event.data);
      channel.postMessage([name, data]);
      hear(name, data);
    });
  }
  // After an answer that is not a stream, such as a 503, a browser does not reconnect by itself.
  source.addEventListener("error", () => {
    if (source.readyState === EventSource.CLOSED) setTimeout(restart, ASK_MS);
  });
  return source;
}

function start() {
  leads = false;
  startedAt = Date.now();
  const stopped = new AbortController();
  channel.postMessage(["new"]);
  if (navigator.locks) {
    const held = () => new Promise((release) => {
      if (stopped.signal.aborted) return release();
      const source = listen();
      stopped.signal.addEventListener("abort", () => (source.close(), release()));
    });
    navigator.locks.request(LOCK, { signal: stopped.signal }, held).catch(() => {});
  } else {
    const source = listen();
    stopped.signal.addEventListener("abort", () => source.close());
  }
  stopListening = () => stopped.abort();
}

function restart() {
  stopListening();
  if (!document.hidden) start();
}

// If no reading comes, because the receiver is away or a proxy holds the stream back, the page asks.
async function watch() {
  if (document.hidden || Date.now() - heardAt < SILENT_MS) return;
  if (Date.now() - startedAt > RESTART_MS) restart(); // after the machine slept, a connection can be dead without an error
  try {
    hear("status", await ask("/api/status"));
  } catch {
    const since = heardAt ? `since ${clock(heardAt)}. What you see is from then` : "yet";
    $("connection").textContent = `No connection to the receiver ${since}; this page tries again.`;
    if (!heardAt) $("health").textContent = "";
  }
}

document.addEventListener("visibilitychange", restart);
$("search").addEventListener("submit", (event) => {
  event.preventDefault();
  void lookUp($("user").value);
});
setInterval(watch, ASK_MS);
start();
