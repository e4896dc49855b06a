// What all modes together show: how far they disagree, the types, and the same request elsewhere.

function share(part, whole) {
  return whole ? `${((100 * part) / whole).toFixed(1)} %` : "0 %";
}

/** Comparisons of several inputs as one. */
function summed(comparisons) {
  const pairs = new Map();
  for (const [a, b, count] of comparisons.flatMap((own) => own.pairs)) {
    const key = `${a} and ${b}`;
    pairs.set(key, (pairs.get(key) || 0) + count);
  }
  const add = (name) => comparisons.reduce((sum, own) => sum + own[name], 0);
  const says = comparisons.flatMap((own) => own.says);
  return { unit: comparisons[0].unit, total: add("total"), differing: add("differing"), says, pairs };
}

function disagreementText({ unit, total, differing }) {
  if (unit === "labels" && total === 1) return differing ? "The modes disagree" : "All modes agree";
  if (!differing) return `All modes agree on all ${total} ${unit}`;
  return `Modes disagree on ${share(differing, total)} of the ${unit} (${differing} of ${total})`;
}

function disagreement(sum, modes) {
  const sign = sum.unit === "words" && sum.differing
    ? [el("p", { class: "hint" }, "They are ", el("u", { class: "differs" }, "underlined like this"), ".")]
    : [];
  const parts = [el("p", { class: "verdict" }, disagreementText(sum)), ...sign];
  if (sum.differing && modes.length > 2) parts.push(pairTable(sum));
  if (sum.says.length) parts.push(wordTable(sum, modes));
  return el("div", { class: "card" }, ...parts);
}

function pairTable(sum) {
  const rows = [...sum.pairs];
  const table = longTable(["modes", sum.unit, "share"], rows, ([name, count]) =>
    row(name, String(count), share(count, sum.total)));
  return el("details", {}, el("summary", {}, "Which modes disagree"), table);
}

function wordTable(sum, modes) {
  const details = el("details", {}, el("summary", {}, "The words on which they disagree"));
  details.addEventListener("toggle", () => {
    if (!details.open || details.children.length > 1) return;
    const table = longTable(["word", ...modes], sum.says, ({ word, own }) =>
      row(word, ...own.map((tag) => tag || "–")));
    details.append(el("div", { class: "scroll", tabindex: "0" }, table));
  });
  return details;
}

/** Types with how often each mode found them; the boxes hide and show them. */
function legend(types, byMode, hidden, changed) {
  const modes = [...byMode.keys()];
  const table = longTable(["type", ...modes], types, (type) => {
    const box = el("input", { type: "checkbox", "aria-label": `Show ${type}` });
    box.checked = !hidden.has(type);
    box.addEventListener("change", () => changed(type, box.checked));
    const swatch = el("span", { class: "swatch", "aria-hidden": "true" });
    swatch.style.setProperty("--h", String(hue(types.indexOf(type))));
    const name = el("label", {}, box, " ", swatch, ` ${type}`);
    return row(name, ...modes.map((mode) => String(countOf(byMode.get(mode), type))));
  });
  return el("div", { class: "card" }, el("h2", {}, "Types"), el("div", { class: "scroll", tabindex: "0" }, table));
}

function countOf(views, type) {
  return views.reduce((sum, view) => sum + view.spans.filter((own) => own.type === type).length, 0);
}

function copyButton(label, text, tell) {
  const button = el("button", { type: "button" }, label);
  button.addEventListener("click", async () => {
    try {
      await copy(text());
      tell(`${label}: done.`);
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = label), 1500);
    } catch (error) {
      tell(`${label} failed: ${error.message}`);
    }
  });
  return button;
}

const PREVIEW = 600;

/** The result as JSON, and the request as lines for a shell and Python. */
function more(asked, modes, result, withToken, tell) {
  const mode = el("select", { "aria-label": "Mode of the request" }, ...modes.map((own) => el("option", {}, own)));
  const body = () => ({ run: asked.run.name, inputs: asked.inputs, mode: mode.value });
  const makers = { curl: curlLine, Python: pythonLine };
  const codes = Object.keys(makers).map(() => el("pre", { class: "code", tabindex: "0" }));
  const write = () => Object.values(makers).forEach((make, n) => {
    const line = make(body(), withToken);
    codes[n].textContent = line.length > PREVIEW ? `${line.slice(0, PREVIEW)}… (copied whole)` : line;
  });
  mode.addEventListener("change", write);
  write();
  const blocks = Object.entries(makers).map(([name, make], n) =>
    el("div", {}, codes[n], copyButton(`Copy ${name} line`, () => make(body(), withToken), tell)));
  const request = el("details", { class: "card" }, el("summary", {}, "The same request from a program"),
    el("label", {}, "Mode ", mode), ...blocks);
  const copyAll = copyButton("Copy result as JSON", () => JSON.stringify(result(), null, 1), tell);
  return el("div", {}, el("p", {}, copyAll), request);
}
