// Asks the receiver for what is new, filters it and keeps the list in step, without a reload.

import { duration, element, problemsOf, rowOf } from "./rows.js";

const POLL_MS = 1000;
const HIDDEN_POLL_MS = 5000;
const MAX_WAIT_MS = 8000;
const PAGE_ROWS = 100;
// As many as the receiver remembers.
const MAX_REFUSALS = 1000;
const MAX_CHECKS = 4000;

const find = (id) => document.getElementById(id);
const list = find("list");
const filters = find("filters");
const callbackUrl = new URL("callback", location.href).href;

let state = blank();
let openKeys = new Set();
let rows = new Map();
let shownRows = PAGE_ROWS;
let unseen = 0;

function blank() {
  return { epoch: null, items: new Map(), checks: new Map(), after: 0, checked: 0, refused: 0, total: 0, misbehaviour: [] };
}

async function ask() {
  const query = new URLSearchParams({ after: state.after, checked: state.checked, refused: state.refused });
  const answer = await fetch(`feed?${query}`, { cache: "no-store" });
  if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
  return answer.json();
}

function take(feed) {
  const first = state.epoch === null;
  state.epoch = feed.epoch;
  const changed = new Set();
  const fresh = [];
  for (const entry of feed.entries) add(`c${entry.number}`, entry, fresh);
  for (const refusal of feed.refusals) {
    add(`r${refusal.number}`, { ...refusal, refusal: true }, fresh);
    state.refused = Math.max(state.refused, refusal.number);
  }
  for (const check of feed.checks) {
    state.checks.set(check.sha256, check);
    changed.add(check.sha256);
  }
  for (const sha256 of [...state.checks.keys()].slice(0, -MAX_CHECKS)) state.checks.delete(sha256);
  let dropped = false;
  for (const [key, item] of state.items) {
    const isGone = item.number < (item.refusal ? state.refused - MAX_REFUSALS : feed.oldest);
    if (isGone || changed.has(item.sha256)) rows.delete(key);
    if (isGone) dropped = state.items.delete(key);
  }
  Object.assign(state, { after: feed.last, checked: feed.last_check, total: feed.last, refusals: feed.total_refusals,
    misbehaviour: feed.misbehaviour });
  return { fresh: first ? [] : fresh, changed: first || dropped || fresh.length + changed.size > 0 };
}

function add(key, item, fresh) {
  state.items.set(key, { ...item, key, at: Date.parse(item.received_at) });
  fresh.push(key);
}

// Newest first, each with the seconds since the callback before it.
function sorted() {
  const all = [...state.items.values()].sort((a, b) => b.at - a.at || b.number - a.number);
  let before = null;
  for (const item of all.toReversed()) {
    item.gap = before === null || item.refusal ? null : (item.at - before) / 1000;
    if (!item.refusal) before = item.at;
  }
  return all;
}

function wanted() {
  const asked = Object.fromEntries(new FormData(filters));
  return { text: (asked.text ?? "").trim().toLowerCase(), status: asked.status ?? "", verdict: asked.verdict ?? "",
    kind: asked.kind ?? "", problems: asked.problems === "on" };
}

function matches(item, asked) {
  const problems = problemsOf(item, state.checks.get(item.sha256));
  if (asked.problems && !problems.length) return false;
  if (asked.verdict && !problems.some(([group]) => group === asked.verdict)) return false;
  if (asked.status && item.status !== asked.status) return false;
  if (asked.kind && item.kind !== asked.kind) return false;
  if (!asked.text) return true;
  return [item.job_id, item.error, item.image_url, item.sha256, item.webhook_id, item.reason, item.status]
    .some((text) => text && text.toLowerCase().includes(asked.text));
}

function render(fresh = []) {
  const all = sorted();
  const asked = wanted();
  const isFiltered = Object.values(asked).some(Boolean);
  const matching = all.filter((item) => matches(item, asked));
  const anchor = anchorRow();
  place(matching.slice(0, shownRows), new Set(fresh));
  if (anchor) scrollBy(0, anchor.row.getBoundingClientRect().top - anchor.top);
  const nothing = all.length === 0;
  find("empty").hidden = !nothing;
  find("no-match").hidden = nothing || matching.length > 0;
  list.hidden = matching.length === 0;
  find("figures").hidden = filters.hidden = nothing;
  find("show-all").hidden = !isFiltered;
  find("older").hidden = matching.length <= shownRows;
  find("count").textContent = isFiltered ? `${matching.length} of ${all.length}` : heldBack(all);
  figures(all);
  announce(anchor ? fresh.filter((key) => matching.some((item) => item.key === key)).length : 0);
}

function heldBack(all) {
  const held = all.filter((item) => !item.refusal).length;
  return state.total > held ? `The latest ${held} of ${state.total}` : "";
}

// The row at the top of the window, if the reader has scrolled into the list: it stays where it is.
function anchorRow() {
  if (scrollY < 120) return null;
  const row = [...list.tBodies].find((body) => body.getBoundingClientRect().bottom > 80);
  return row ? { row, top: row.getBoundingClientRect().top } : null;
}

function place(items, fresh) {
  const next = items.map((item) => {
    if (!rows.has(item.key)) rows.set(item.key, made(item, fresh.has(item.key)));
    return rows.get(item.key);
  });
  const keep = new Set(next);
  const old = new Map([...list.tBodies].map((body) => [body.dataset.key, body]));
  next.forEach((row, index) => {
    const present = old.get(row.dataset.key);
    if (present && present !== row) present.replaceWith(row);
    if (list.tBodies[index] !== row) list.insertBefore(row, list.tBodies[index] ?? null);
  });
  for (const body of [...list.tBodies]) if (!keep.has(body)) body.remove();
}

function made(item, isFresh) {
  const check = state.checks.get(item.sha256);
  const open = openKeys.has(item.key);
  const row = rowOf(item, check, { gap: item.gap, open, onToggle: () => toggle(item.key) });
  row.dataset.key = item.key;
  row.classList.toggle("fresh", isFresh);
  return row;
}

function toggle(key) {
  if (!openKeys.delete(key)) openKeys.add(key);
  const hadFocus = rows.get(key)?.contains(document.activeElement);
  rows.delete(key);
  render();
  if (hadFocus) rows.get(key)?.querySelector("button").focus({ preventScroll: true });
}

function figures(all) {
  const callbacks = all.filter((item) => !item.refusal);
  const kept = callbacks.filter((item) => item.saved_path);
  const checks = kept.map((item) => state.checks.get(item.sha256)).filter(Boolean);
  const whole = checks.filter((check) => check.valid).length;
  const wrong = callbacks.map((item) => problemsOf(item, state.checks.get(item.sha256))).filter((found) => found.length);
  const tone = wrong.flat().some(([, tone]) => tone === "bad") ? "bad" : "odd";
  const lags = callbacks.map((item) => item.seconds_after_completion).filter((lag) => typeof lag === "number");
  lags.sort((a, b) => a - b);
  const rank = (share) => lags[Math.max(0, Math.ceil(lags.length * share) - 1)];
  figure("callbacks", state.total, "");
  figure("jobs", new Set(callbacks.map((item) => item.job_id)).size, "");
  figure("pictures", whole, kept.length ? ` of ${kept.length}` : "");
  figure("problems", wrong.length, "", wrong.length ? tone : "");
  figure("refused", state.refusals, "", state.refusals ? "odd" : "");
  figure("lag", lags.length ? duration(rank(0.5)) : "\u2013", lags.length > 1 ? ` 95 %: ${duration(rank(0.95))}` : "");
  const statuses = [...new Set(callbacks.map((item) => item.status))].sort();
  const select = filters.elements.status;
  const chosen = select.value;
  if ([...select.options].slice(1).map((option) => option.value).join("\n") !== statuses.join("\n")) {
    select.replaceChildren(select.options[0], ...statuses.map((status) => new Option(status, status)));
    select.value = statuses.includes(chosen) ? chosen : "";
  }
}

function figure(name, value, more, tone = "") {
  const shown = find(`figure-${name}`);
  shown.dataset.tone = tone;
  shown.replaceChildren(String(value), element("small", "", more));
}

function announce(count) {
  unseen = scrollY < 120 ? 0 : unseen + count;
  find("news").hidden = unseen === 0;
  find("news").textContent = unseen === 1 ? "1 new callback \u2191" : `${unseen} new callbacks \u2191`;
}

function misbehaviour() {
  const banner = find("misbehaviour");
  banner.hidden = state.misbehaviour.length === 0;
  const told = state.misbehaviour.slice(0, 3).map((it) => {
    const acts = [it.delay_s && `waits ${duration(it.delay_s)}`, it.drop_connection && "cuts the connection",
      it.redirect_to && "redirects", it.answer_status && `answers ${it.answer_status}`,
      it.drip_s && `sends its answer over ${duration(it.drip_s)}`].filter(Boolean);
    const which = it.times === null ? "every callback" : it.times === 1 ? "the next callback" : `the next ${it.times} callbacks`;
    return `${acts.join(", ") || "behaves"} (${which}${it.job_id === null ? "" : ` of job ${it.job_id}`})`;
  });
  const more = state.misbehaviour.length > 3 ? `; and ${state.misbehaviour.length - 3} more` : "";
  banner.textContent = `This receiver was told to misbehave: it ${told.join("; then ")}${more}.`;
}

function live(name, text) {
  find("live").dataset.state = name;
  if (find("live-text").textContent !== text) find("live-text").textContent = text;
}

async function run() {
  let wait = POLL_MS;
  for (;;) {
    try {
      const feed = await ask();
      if (state.epoch !== null && feed.epoch !== state.epoch) {
        state = blank();
        rows = new Map();
        openKeys = new Set();
        continue;
      }
      const { fresh, changed } = take(feed);
      if (changed) render(fresh);
      misbehaviour();
      live("live", "Live");
      wait = document.hidden ? HIDDEN_POLL_MS : POLL_MS;
    } catch {
      live("lost", "The receiver does not answer. Trying again.");
      wait = Math.min(wait * 2, MAX_WAIT_MS);
    }
    await new Promise((resume) => setTimeout(resume, wait));
  }
}

async function copy(button) {
  const shown = button.parentElement.querySelector(".callback-url");
  try {
    await navigator.clipboard.writeText(callbackUrl);
    button.textContent = "Copied";
  } catch {
    // Browsers lend the clipboard to pages of this machine or with TLS only.
    getSelection().selectAllChildren(shown);
    button.textContent = "Selected";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

function refilter() {
  const asked = Object.entries(Object.fromEntries(new FormData(filters))).filter(([, value]) => value);
  history.replaceState(null, "", asked.length ? `#${new URLSearchParams(asked)}` : location.pathname);
  shownRows = PAGE_ROWS;
  render();
}

function showAll() {
  filters.reset();
  refilter();
}

function restoreFilters() {
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
    const field = filters.elements[name];
    if (!field) continue;
    if (name === "problems") field.checked = value === "on";
    else if (name === "status" && value) field.append(new Option(value, value, false, true));
    else field.value = value;
  }
}

for (const place of document.querySelectorAll(".callback-url")) place.textContent = callbackUrl;
for (const button of document.querySelectorAll(".copy")) button.addEventListener("click", () => copy(button));
find("example").textContent = [
  `curl ${callbackUrl}`, "  -F job_id=hello -F status=completed", `  -F completed_at=${new Date().toISOString()}`,
  "  -F image=@picture.png"].join(" \\\n");
filters.addEventListener("input", refilter);
filters.addEventListener("submit", (event) => event.preventDefault());
find("show-all").addEventListener("click", showAll);
find("show-all-too").addEventListener("click", showAll);
find("older").addEventListener("click", () => { shownRows += PAGE_ROWS; render(); });
find("news").addEventListener("click", () => scrollTo({ top: 0, behavior: "smooth" }));
addEventListener("scroll", () => { if (scrollY < 120 && unseen) announce(0); }, { passive: true });
restoreFilters();
run();
