// What a mode answered, as a panel.

const ROWS = 100; // of a list, before it is asked for more

const LONG_TEXT = 20000; // characters from which the browser lays out what is seen alone

const tips = new WeakMap(); // element → lines about it

function number(value, digits = 3) {
  return typeof value === "number" ? value.toFixed(digits).replace("-", "−") : "none";
}

function hue(n) {
  return Math.round((250 + n * 137.508) % 360);
}

/** One of a group's elements is reached by Tab, the others from it by arrows. */
function roving(group, selector) {
  const first = group.querySelector(selector);
  for (const own of group.querySelectorAll(selector)) own.tabIndex = own === first ? 0 : -1;
  group.onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const edge = { Home: 0, End: -1 }[event.key];
    if ((step === undefined && edge === undefined) || !event.target.matches(selector)) return;
    const all = [...group.querySelectorAll(selector)].filter((own) => !own.classList.contains("off"));
    const next = edge === undefined ? all[all.indexOf(event.target) + step] : all.at(edge);
    if (!next) return;
    event.preventDefault();
    focusIn(group, selector, next);
  };
}

function focusIn(group, selector, element) {
  for (const own of group.querySelectorAll(`${selector}[tabindex="0"]`)) own.tabIndex = -1;
  element.tabIndex = 0;
  element.focus();
}

function scoreLine(view, span) {
  if (span.score === undefined) return span.type;
  const name = view.kind === "answer" ? "log-odds" : "score";
  return `${span.type}, ${name} ${number(span.score)}`;
}

function placeLine(span) {
  return `${span.byWord ? "words" : "characters"} ${span.points[0]}–${span.points[1]}`;
}

/** The text with spans and disagreements; remembers the elements of each span. */
function markedPanel(view, mode, marks, modes, types) {
  const elements = new Map(view.spans.map((span, n) => [n, []]));
  const spans = view.spans.map((span, n) => ({ ...span, n, rank: 0 }));
  const ranges = [...spans, ...marks].filter((own) => own.end > own.start);
  const content = markedText(view.text, ranges, (piece) => {
    if (piece.n === undefined) return differing(piece, modes);
    const label = piece.goesOn ? {} : { label: piece.type };
    const mark = el("mark", { data: { type: piece.type, ...label } });
    mark.style.setProperty("--h", String(hue(types.indexOf(piece.type))));
    if (piece.continues) mark.classList.add("continued");
    tips.set(mark, [scoreLine(view, piece), placeLine(piece)]);
    elements.get(piece.n).push(mark);
    return mark;
  });
  const name = `Text marked by ${mode}`;
  const long = view.text.length > LONG_TEXT ? " long" : "";
  const box = el("div", { class: `text${long}`, role: "group", "aria-label": name, tabindex: "0" }, content);
  roving(box, "mark");
  return { box, elements };
}

function differing(piece, modes) {
  const own = el("u", { class: "differs" });
  const says = piece.differs
    ? modes.map((mode, n) => `${mode}: ${piece.differs[n] || "nothing"}`)
    : ["not in all the other texts"];
  tips.set(own, ["modes disagree", ...says]);
  return own;
}

/** A name that lines may break after its underscores. */
function breakable(name) {
  return name.split("_").flatMap((part, n) => (n ? ["_", el("wbr"), part] : [part]));
}

/** A table that grows by request. */
function longTable(heads, rows, rowOf) {
  const body = el("tbody");
  const more = el("button", { type: "button" });
  let shown = 0;
  const grow = () => {
    body.append(...rows.slice(shown, shown + ROWS).map(rowOf));
    shown = Math.min(rows.length, shown + ROWS);
    more.hidden = shown === rows.length;
    more.textContent = `Show more (${rows.length - shown} left)`;
  };
  more.addEventListener("click", grow);
  grow();
  const head = el("tr", {}, ...heads.map((own) => el("th", { scope: "col" }, ...breakable(own))));
  return el("div", {}, el("table", {}, el("thead", {}, head), body), more);
}

function entityList(view, marked) {
  const title = `${view.spans.length} ${view.spans.length === 1 ? "entity" : "entities"} as a list`;
  const details = el("details", {}, el("summary", {}, title));
  details.addEventListener("toggle", () => {
    if (!details.open || details.children.length > 1) return;
    const rows = view.spans.map((span, n) => [span, n]);
    const table = longTable(["text", "type", "score", "place"], rows, ([span, n]) => {
      const go = () => focusIn(marked.box, "mark", marked.elements.get(n)[0]);
      const button = el("button", { type: "button", class: "link", title: "Show it in the text", onclick: go }, span.said);
      return row(button, span.type, number(span.score), `${span.points[0]}–${span.points[1]}`);
    });
    details.append(el("div", { class: "scroll places", tabindex: "0" }, table));
  });
  return details;
}

function row(...cells) {
  return el("tr", {}, ...cells.map((own) => el("td", {}, own)));
}

/** Names with bars as long as their scores; the first few, and the rest behind a button. */
function bars(scores, few = 8) {
  const sorted = Object.entries(scores).sort((a, b) => b[1] - a[1]);
  const list = el("ul", { class: "bars" }, ...sorted.slice(0, few).map(bar));
  if (sorted.length <= few) return list;
  const rest = el("button", { type: "button" }, `All ${sorted.length} labels`);
  rest.addEventListener("click", () => {
    list.append(...sorted.slice(few).map(bar));
    rest.remove();
  });
  return el("div", {}, list, rest);
}

function bar([name, score]) {
  const inner = el("span", { class: "bar", "aria-hidden": "true" }, el("span"));
  inner.firstChild.style.width = `${Math.max(0, Math.min(1, score)) * 100}%`;
  return el("li", {}, el("span", { class: "name" }, name), inner, el("span", { class: "value" }, number(score)));
}

/** The parts of a view of one input. */
function viewParts(view, mode, marks, modes, types) {
  if (["label", "relation", "relevance"].includes(view.kind)) {
    const { name, score, scores, relevance } = view.answer;
    const verdict = el("p", { class: "verdict" }, name, el("small", {}, ` ${number(relevance ?? score)}`));
    const text = view.spans.length ? [markedPanel(view, mode, marks, modes, types).box] : [];
    return [verdict, ...text, bars(scores)];
  }
  if (view.kind === "no_answer") {
    return [el("p", { class: "verdict" }, "No answer", el("small", {}, ` log-odds of the best ${number(view.answer.score)}`)),
      markedPanel(view, mode, marks, modes, types).box];
  }
  if (!["entities", "answer", "text"].includes(view.kind)) {
    return [el("pre", {}, JSON.stringify(view.answer, null, 1))];
  }
  const marked = markedPanel(view, mode, marks, modes, types);
  const parts = [marked.box];
  if (view.kind === "entities") parts.push(entityList(view, marked));
  if (view.kind === "text") parts.push(el("p", { class: "hint" }, `log-probability by length ${number(view.answer.score)}`));
  if (view.kind === "answer") {
    const score = el("small", {}, ` log-odds ${number(view.answer.score)}`);
    parts.unshift(el("p", { class: "verdict", dir: "auto" }, view.answer.text, score));
  }
  const odd = misplaced(view).length;
  if (odd) parts.push(el("p", { class: "error" }, `${odd} marks are not where the server says that they are.`));
  return parts;
}
