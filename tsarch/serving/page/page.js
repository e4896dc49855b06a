// The page: chooses a run, asks all chosen modes one after another, and shows what they answer.

const SHOWN = 50; // inputs at most
const $ = (id) => document.getElementById(id);
const state = { runs: [], run: null, form: null, isJson: false, controller: null, asked: null, hidden: new Set() };

function say(text) {
  $("status").textContent = text;
}

function alertOf(text, ...buttons) {
  $("alert").replaceChildren(...(text ? [el("p", { class: "error card" }, text, ...buttons)] : []));
}

async function start() {
  say("Loading the runs …");
  try {
    state.runs = await call("runs");
    say("");
    alertOf("");
    if (!state.runs.length) return alertOf("The server has no runs. Start it with one: tsarch serve RUN");
    $("run").replaceChildren(...state.runs.map((own) => el("option", {}, own.name)));
    $("run-label").hidden = state.runs.length === 1;
    $("ask").hidden = false;
    chooseRun(state.runs[0]);
  } catch (error) {
    say("");
    showError(error, start);
  }
}

function showError(error, again) {
  if (error.status === 401) return askForToken(error);
  alertOf(error.message, el("button", { type: "button", onclick: again }, "Try again"));
}

function askForToken(error) {
  alertOf(error.message);
  toggleAccess(true);
  $("token").focus();
}

function toggleAccess(isOpen) {
  $("access").hidden = !isOpen;
  $("access-button").setAttribute("aria-expanded", String(isOpen));
}

function chooseRun(run) {
  state.run = run;
  state.hidden = new Set();
  const facts = [state.runs.length > 1 ? "" : run.name, run.task, run.version ? `version ${String(run.version).slice(0, 24)}` : ""];
  $("about").textContent = facts.filter(Boolean).join(" · ");
  $("modes").replaceChildren(...run.modes.map((mode) => modeBox(mode)));
  const examples = run.examples || [];
  const options = examples.map((own, n) => el("option", { value: String(n) }, summaryOf(run, own)));
  $("examples").replaceChildren(el("option", { value: "" }, "Choose one …"), ...options);
  $("examples-label").hidden = !examples.length;
  setForm(formOf(run), false);
  empty();
}

function modeBox(mode) {
  const box = el("input", { type: "checkbox", name: "mode", value: mode, checked: true });
  return el("label", { class: "mode" }, box, el("span", {}, ` ${mode}`, el("small", {}, ` ${MODES[mode] || ""}`)));
}

function summaryOf(run, input) {
  const question = run.task === "qa" ? cell(input, columnOf(run, "question")) : "";
  const text = [question, textOf(run, input).text].filter(Boolean).join(" – ");
  return Array.from(text.slice(0, 500).replace(/\s+/g, " ")).slice(0, 70).join("");
}

function setForm(form, isJson) {
  state.form = form;
  state.isJson = isJson;
  $("fields").replaceChildren(form.element);
  $("as-json").setAttribute("aria-pressed", String(isJson));
  alertOf("");
}

function showExample(example) {
  if (!state.isJson && state.form.show(example)) return;
  setForm(jsonForm(), true);
  state.form.show([example]);
}

/** From fields to JSON and back, with what stands there. */
function switchForm() {
  let inputs = [];
  try {
    inputs = state.form.read();
  } catch {
    inputs = [];
  }
  if (!state.isJson) {
    setForm(jsonForm(), true);
    if (inputs.length) state.form.show(inputs);
    return;
  }
  const form = formOf(state.run);
  if (inputs.length === 1) form.show(inputs[0]);
  setForm(form, false);
}

function empty() {
  state.asked = null;
  for (const id of ["summary", "more"]) $(id).replaceChildren();
  const hint = "Paste a text or choose an example, then predict: the answers of all modes stand here side by side.";
  $("panels").replaceChildren(el("p", { class: "empty" }, hint));
  $("stale").hidden = true;
}

function chosenModes() {
  return [...document.querySelectorAll('input[name="mode"]:checked')].map((own) => own.value);
}

function readForm() {
  const modes = chosenModes();
  if (!modes.length) throw new FormError("Choose at least one mode.", document.querySelector('input[name="mode"]'));
  return { run: state.run, inputs: state.form.read(), modes, answered: new Map() };
}

async function predict() {
  if (state.controller) return;
  alertOf("");
  try {
    state.asked = readForm();
  } catch (error) {
    if (!(error instanceof FormError)) throw error;
    alertOf(error.message);
    error.field?.focus();
    return;
  }
  state.controller = new AbortController();
  busy(true);
  try {
    await askAll(state.asked, state.controller.signal);
    finish(state.asked);
  } catch (error) {
    if (error.name === "AbortError") cancelled(state.asked);
    else failed(error);
  } finally {
    state.controller = null;
    busy(false);
  }
}

function busy(isBusy) {
  $("predict").disabled = isBusy;
  $("cancel").hidden = !isBusy;
  $("results").setAttribute("aria-busy", String(isBusy));
}

/** Ask one mode after another, so that their times tell something. */
async function askAll(asked, signal) {
  for (const id of ["summary", "more"]) $(id).replaceChildren();
  $("stale").hidden = true;
  asked.panels = new Map(asked.modes.map((mode) => [mode, panelOf(mode)]));
  $("panels").replaceChildren(...asked.panels.values());
  if ($("panels").getBoundingClientRect().top > 0.6 * innerHeight) $("results").scrollIntoView();
  for (const [n, mode] of asked.modes.entries()) {
    say(`Asking ${mode}, ${n + 1} of ${asked.modes.length} …`);
    const began = performance.now();
    const body = { run: asked.run.name, inputs: asked.inputs, mode };
    const wait = (error, left) => say(`${mode}: ${error.message} Again in ${left} s.`);
    try {
      const answer = await patientCall("predict", body, signal, wait);
      asked.answered.set(mode, { ...answer, total: (performance.now() - began) / 1000 });
      drawPanel(asked, mode, []);
    } catch (error) {
      if (error.name === "AbortError" || REQUEST_ERRORS.has(error.status)) throw error;
      panelError(asked.panels.get(mode), error);
    }
  }
}

function panelOf(mode) {
  const about = el("p", { class: "hint" }, MODES[mode] || "");
  const waiting = el("p", { class: "waiting" }, "Waiting …");
  return el("article", { class: "panel card", "aria-label": mode, data: { mode } },
    el("h2", {}, mode), about, el("div", { class: "content" }, waiting));
}

function panelError(panel, error) {
  const again = el("button", { type: "button", onclick: predict }, "Try again");
  panel.querySelector(".content").replaceChildren(el("p", { class: "error" }, error.message, " ", again));
}

function cancelled(asked) {
  say("Cancelled.");
  for (const mode of asked.modes) {
    const content = asked.panels.get(mode).querySelector(".content");
    if (content.querySelector(".waiting")) content.replaceChildren(el("p", { class: "hint" }, "Cancelled."));
  }
}

function failed(error) {
  if (!(error instanceof ApiError)) throw error;
  say("");
  $("panels").replaceChildren();
  showError(error, predict);
}

/** mode → its views, one an input. */
function viewsOf(asked) {
  if (!asked.sources) asked.sources = asked.inputs.slice(0, SHOWN).map((input) => textOf(asked.run, input));
  const of = ({ answers }) => asked.sources.map((source, n) => viewOf(asked.run, source, answers[n]));
  return new Map([...asked.answered].map(([mode, answer]) => [mode, of(answer)]));
}

function drawPanel(asked, mode, comparisons) {
  const views = viewsOf(asked).get(mode);
  const types = typesOf(asked.run, views);
  const modes = [...asked.answered.keys()];
  const parts = views.flatMap((view, n) => {
    const heading = views.length > 1 ? [el("h3", { dir: "auto" }, `${n + 1}. ${summaryOf(asked.run, asked.inputs[n])}`)] : [];
    return [...heading, ...viewParts(view, mode, comparisons[n]?.marks.get(mode) || [], modes, types)];
  });
  const left = asked.inputs.length - views.length;
  if (left > 0) parts.push(el("p", { class: "hint" }, `${left} more inputs are in the JSON alone.`));
  asked.panels.get(mode).querySelector(".content").replaceChildren(timing(asked.answered.get(mode)), ...parts);
  if (state.hidden.size) hideTypes();
}

function timing({ seconds, total }) {
  return el("p", { class: "hint timing" }, `${number(seconds)} s on the server, ${number(total)} s in all`);
}

function finish(asked) {
  const modes = [...asked.answered.keys()];
  if (!modes.length) return say("No mode answered.");
  const views = viewsOf(asked);
  const comparisons = asked.sources.map((_, n) =>
    compare(new Map(modes.map((mode) => [mode, views.get(mode)[n]]))));
  const sum = summed(comparisons);
  if (sum.differing) modes.forEach((mode) => drawPanel(asked, mode, comparisons));
  const parts = modes.length > 1 ? [disagreement(sum, modes)] : [];
  const versions = new Set([...asked.answered.values()].map((own) => own.version));
  if (versions.size > 1) alertOf("The run was swapped meanwhile: not all modes are of one version. Predict again.");
  if (asked.run.task === "ner") parts.push(legend(typesOf(asked.run, [...views.values()].flat()), views, state.hidden, showType));
  $("summary").replaceChildren(...parts);
  const hasToken = sessionStorage.getItem(TOKEN) !== null;
  $("more").replaceChildren(more(asked, modes, () => resultOf(asked, sum), hasToken, say));
  say(`${modes.join(", ")}: done. ${modes.length > 1 ? `${disagreementText(sum)}.` : ""}`);
}

function resultOf(asked, sum) {
  const results = [...asked.answered].map(([mode, own]) => [mode, { answers: own.answers, seconds: own.seconds }]);
  const [first] = asked.answered.values();
  const disagreement = { unit: sum.unit, differing: sum.differing, total: sum.total };
  return { run: first.run, version: first.version, inputs: asked.inputs, results: Object.fromEntries(results), disagreement };
}

function showType(type, isShown) {
  if (isShown) state.hidden.delete(type);
  else state.hidden.add(type);
  hideTypes();
}

function hideTypes() {
  for (const mark of document.querySelectorAll("#panels mark")) mark.classList.toggle("off", state.hidden.has(mark.dataset.type));
}
