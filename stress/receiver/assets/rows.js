// The rows of the list. Whatever callers sent is put into the page with textContent, never as markup.

export function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined && text !== null) made.textContent = String(text);
  return made;
}

export function duration(seconds) {
  const size = Math.abs(seconds);
  const sign = seconds < 0 ? "\u2212" : "";
  if (size < 0.9995) return `${sign}${Math.round(size * 1000)} ms`;
  if (size < 99.95) return `${sign}${size.toFixed(1)} s`;
  if (size < 5400) return `${sign}${Math.round(size / 60)} min`;
  if (size < 129600) return `${sign}${Math.round(size / 3600)} h`;
  return `${sign}${Math.round(size / 86400)} days`;
}

export function bytes(count) {
  if (count < 1000) return `${count} B`;
  return count < 1e6 ? `${(count / 1e3).toFixed(0)} kB` : `${(count / 1e6).toFixed(2)} MB`;
}

// What is wrong with a callback: [group that the filter knows, tone, sentence].
export function problemsOf(item, check) {
  if (item.refusal) return [["refused", "bad", item.reason]];
  const found = [];
  if (item.secret_ok === false) found.push(["secret", "bad", `The secret is ${item.secret}.`]);
  if (!["right", "not checked"].includes(item.signature)) {
    found.push(["signature", "bad", item.signature === "stale"
      ? "The signature is right, but its moment is too far from now." : `The signature is ${item.signature}.`]);
  }
  if (check && !check.valid) found.push(["picture", "bad", `Picture: ${check.reason}`]);
  if (item.status === "completed" && !item.has_image) found.push(["missing", "bad", "Completed, but no picture came with it."]);
  if (item.error) found.push(["error", "bad", item.error]);
  else if (item.status !== "completed") found.push(["error", "bad", "The job did not complete."]);
  if (item.kind === "duplicate") found.push(["kind", "odd", "The same attempt of the same delivery came before."]);
  if (item.kind === "unidentified") found.push(["kind", "odd", "Not the first for this job, and without a webhook-id."]);
  if (item.answered_status === null) found.push(["answer", "odd", "The connection was cut instead of an answer."]);
  else if ((item.answered_status < 200 || item.answered_status >= 300) && item.secret_ok !== false
    && ["right", "not checked"].includes(item.signature)) {
    found.push(["answer", "odd", `Answered ${item.answered_status}, as this receiver was told to.`]);
  } else if (item.answered_status >= 300) found.push(["answer", "odd", ""]);
  return found;
}

function word(tone, text) {
  return element("span", `word ${tone}`, text);
}

function cell(label, ...content) {
  const made = element("td");
  if (label) made.dataset.label = label;
  made.append(...content);
  return made;
}

function thumbnail(item, check) {
  const frame = element("span", "thumb");
  if (item.saved_path && check && check.shown) {
    const image = element("img");
    image.loading = "lazy";
    image.decoding = "async";
    image.alt = "";
    image.src = `thumbnails/${item.sha256}.jpg`;
    image.addEventListener("error", () => frame.replaceChildren("gone"), { once: true });
    frame.append(image);
  } else if (item.saved_path && !check) frame.textContent = "\u2026";
  else frame.textContent = item.has_image ? "not shown" : "none";
  return frame;
}

function pictureWord(item, check) {
  if (!item.has_image) return item.status === "completed" ? word("bad", "missing") : word("calm", "none");
  if (!item.saved_path) return word("calm", "not kept");
  if (!check) return word("calm", "checking\u2026");
  return check.valid ? word("good", "whole") : word("bad", "invalid");
}

const SECRET_TONES = { right: "good", wrong: "bad", missing: "bad", stale: "bad", "not checked": "calm" };
const KIND_TONES = { first: "calm", repeat: "good", duplicate: "odd", unidentified: "odd" };

function answered(item) {
  if (item.answered_status === null) return word("odd", "cut");
  return word(item.answered_status < 300 ? "calm" : "odd", item.answered_status);
}

function receivedCell(item, gap) {
  const at = new Date(item.received_at);
  const today = at.toDateString() === new Date().toDateString();
  const clock = at.toLocaleTimeString([], { hour12: false });
  const when = element("span", "when", today ? clock : `${at.toLocaleDateString()} ${clock}`);
  when.title = item.received_at;
  const made = cell("Received", when);
  made.classList.add("time");
  if (gap !== null) {
    const since = element("span", "gap", `+${duration(gap)}`);
    since.title = "since the callback before it";
    made.append(since);
  }
  return made;
}

function lagCell(item) {
  const lag = item.seconds_after_completion;
  const made = cell("After completion", element("span", "lag", typeof lag === "number" ? duration(lag) : "\u2013"));
  made.classList.add("time");
  return made;
}

function notes(problems) {
  const shown = problems.filter(([, , sentence]) => sentence);
  return shown.map(([, tone, sentence]) => element("p", `note ${tone}`, sentence.length > 240 ? `${sentence.slice(0, 240)}\u2026` : sentence));
}

function facts(item, check) {
  const list = element("dl", "facts");
  const lines = item.refusal
    ? [["Reason", item.reason], ["Body announced", item.size_bytes === null ? null : bytes(item.size_bytes)]]
    : [["Completed at", item.completed_at], ["Error", item.error], ["Image address", item.image_url],
       ["Picture size", item.image_size === null ? null : bytes(item.image_size)],
       ["Dimensions", check && check.width ? `${check.width} \u00d7 ${check.height} px` : null],
       ["SHA-256", item.sha256], ["Saved at", item.saved_path], ["Delivery id", item.webhook_id],
       ["Attempt", item.webhook_attempt], ["Signed at", item.webhook_timestamp]];
  const common = [["Received at", item.received_at], ["Sender", item.sender], ["Number", item.number]];
  for (const [name, value] of [...lines, ...common]) {
    if (value === null || value === undefined || value === "") continue;
    list.append(element("dt", "", name), element("dd", /SHA|at$|address|id$/.test(name) ? "mono" : "", value));
  }
  return list;
}

function sheet(item, check) {
  const made = element("div", "sheet");
  if (!item.refusal && item.saved_path && check && check.shown) {
    const link = element("a", "whole");
    link.href = `pictures/${item.sha256}.png`;
    link.target = "_blank";
    link.rel = "noopener";
    const image = element("img");
    image.alt = `The picture of job ${item.job_id}`;
    image.width = check.width;
    image.height = check.height;
    image.src = link.href;
    link.append(image);
    made.append(link);
  }
  made.append(facts(item, check));
  return made;
}

// One entry is one <tbody>: its row, and below it, while it is open, all that is known of it.
export function rowOf(item, check, { gap, open, onToggle }) {
  const group = element("tbody", item.refusal ? "refusal" : "");
  const row = element("tr", "row");
  const problems = problemsOf(item, check);
  const job = element("button", "job", item.job_id ?? "not a callback");
  job.type = "button";
  job.setAttribute("aria-expanded", String(open));
  const title = cell("", job, ...notes(problems));
  if (item.refusal) {
    row.append(cell("", element("span", "thumb", "refused")), title, cell("Status", word("bad", "refused")),
      ...["Delivery", "Secret", "Signature", "Picture"].map(() => cell("", word("calm", "\u2013"))));
  } else {
    const status = word(item.status === "completed" ? "good" : "bad", item.status);
    status.classList.add("status");
    status.title = item.status;
    const attempt = item.webhook_attempt === null ? "" : ` \u00b7 ${item.webhook_attempt}`;
    row.append(cell("", thumbnail(item, check)), title, cell("Status", status),
      cell("Delivery", word(KIND_TONES[item.kind], item.kind + attempt)),
      cell("Secret", word(SECRET_TONES[item.secret], item.secret)),
      cell("Signature", word(SECRET_TONES[item.signature], item.signature)),
      cell("Picture", pictureWord(item, check)));
  }
  row.append(cell("Answered", answered(item)), lagCell(item), receivedCell(item, gap));
  row.addEventListener("click", () => { if (!String(getSelection())) onToggle(); });
  group.append(row);
  if (open) {
    const detail = element("tr", "detail");
    const wide = element("td");
    wide.colSpan = 10;
    wide.append(sheet(item, check));
    detail.append(wide);
    group.append(detail);
  }
  return group;
}
