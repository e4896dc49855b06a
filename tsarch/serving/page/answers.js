// Answers of the API as what is shown: a view has a text, its words, and spans of it by UTF-16 units.

const MODES = {
  teacher: "the large model",
  student: "the small model with the teacher's states",
  joint: "both together",
  student_alone: "the small model, without the teacher",
};

const TEXT_COLUMNS = {
  ner: "tokens",
  relation: "tokens",
  qa: "context",
  ranking: "passage",
  multiple_choice: "question",
  translation: "source",
  summarization: "document",
  dialogue: "history",
  code: "start",
};

/** The text that an input's answers stand in, and its words. */
function textOf(run, input) {
  if (typeof input === "string") return { text: input, words: wordsOf(input) };
  const column = TEXT_COLUMNS[run.task] || "text";
  const own = Array.isArray(input) ? input : cell(input, columnOf(run, column));
  if (Array.isArray(own)) {
    const source = joined(own.map(String));
    return run.task === "relation" ? { ...source, ends: endSpans(run, input, source.words) } : source;
  }
  const text = typeof own === "string" ? own : JSON.stringify(input);
  return { text, words: wordsOf(text) };
}

/** A view of an answer (of an input's entities, all of them). */
function viewOf(run, source, answer) {
  if (Array.isArray(answer)) return { ...source, kind: "entities", spans: entitySpans(source, answer) };
  if (answer.kind === "answer") {
    const places = new Places(source.text);
    const span = { type: "answer", start: places.unit(answer.start), end: places.unit(answer.stop) };
    return { ...source, kind: "answer", answer, spans: [{ ...span, ...told(answer) }] };
  }
  if (answer.kind === "text") {
    return { kind: "text", answer, text: answer.text, words: wordsOf(answer.text), spans: [] };
  }
  return { ...source, kind: answer.kind, answer, spans: answer.kind === "relation" ? source.ends : [] };
}

/** Where the row of a relation has its head and tail. */
function endSpans(run, row, words) {
  const last = run.span_ends === "inclusive" ? 1 : 0;
  return ENDS.flatMap((end) => {
    const [first, stop] = cell(row, columnOf(run, end)) || [];
    const [from, to] = [words[first], words[stop + last - 1]];
    const points = [first, stop + last];
    return from && to ? [{ type: end, start: from[0], end: to[1], points, byWord: true }] : [];
  });
}

function told(answer) {
  return { score: answer.score, said: answer.text, points: [answer.start, answer.stop ?? answer.end] };
}

function entitySpans(source, entities) {
  const places = new Places(source.text);
  return entities.map((own) => {
    const base = { type: own.type ?? own.kind, score: own.score, said: own.text };
    if (own.start === undefined) {
      const [first, last] = [source.words[own.first], source.words[own.stop - 1]];
      return { ...base, start: first[0], end: last[1], points: [own.first, own.stop], byWord: true };
    }
    return { ...base, start: places.unit(own.start), end: places.unit(own.end), points: [own.start, own.end] };
  });
}

/** Spans whose text isn't what the API says it is. */
function misplaced(view) {
  return view.spans.filter((own) => !own.byWord && view.text.slice(own.start, own.end) !== own.said);
}

/** Where modes disagree. `marks`: mode → ranges of its text; `says`: word → what each mode says. */
function compare(views) {
  const modes = [...views.keys()];
  const [first] = views.values();
  if (["label", "relation", "relevance"].includes(first.kind)) return compareNames(views, modes);
  if (first.kind === "text") return compareTexts(views, modes);
  const tags = modes.map((mode) => wordTags(views.get(mode).words, views.get(mode).spans));
  const says = [];
  first.words.forEach(([start, end], n) => {
    const own = tags.map((of) => of[n]);
    if (own.some((tag) => tag !== own[0])) says.push({ start, end, word: first.text.slice(start, end), own });
  });
  const ranges = says.map(({ start, end, own }) => ({ start, end, rank: 1, differs: own }));
  const pairs = pairsOf(modes, (a, b) => says.filter(({ own }) => own[a] !== own[b]).length);
  const marks = new Map(modes.map((mode) => [mode, ranges]));
  return { unit: "words", total: first.words.length, differing: says.length, marks, says, pairs };
}

function pairsOf(modes, differing) {
  return modes.flatMap((mode, a) =>
    modes.slice(a + 1).map((other, n) => [mode, other, differing(a, a + 1 + n)]));
}

function compareNames(views, modes) {
  const names = modes.map((mode) => views.get(mode).answer.name);
  const differs = (a, b) => Number(names[a] !== names[b]);
  const differing = Number(names.some((name) => name !== names[0]));
  return { unit: "labels", total: 1, differing, marks: new Map(), says: [], pairs: pairsOf(modes, differs) };
}

/** Words of a generated text that not all others have there. */
function compareTexts(views, modes) {
  const texts = modes.map((mode) => wordsIn(views.get(mode)));
  const odd = modes.map(() => new Set());
  const pairs = pairsOf(modes, (a, b) => {
    const found = differingWords(texts[a], texts[b]);
    found[0].forEach((n) => odd[a].add(n));
    found[1].forEach((n) => odd[b].add(n));
    return found[0].size + found[1].size;
  });
  const marks = new Map(modes.map((mode, m) => [mode, [...odd[m]].sort((a, b) => a - b).map((n) => {
    const [start, end] = views.get(mode).words[n];
    return { start, end, rank: 1, differs: null };
  })]));
  const total = texts.reduce((sum, words) => sum + words.length, 0);
  const differing = odd.reduce((sum, own) => sum + own.size, 0);
  return { unit: "words", total, differing, marks, says: [], pairs };
}

function wordsIn(view) {
  return view.words.map(([start, end]) => view.text.slice(start, end));
}

/** Types of entities in order: the run's own, then others that came. */
function typesOf(run, views) {
  const types = new Set();
  for (const label of run.labels || []) {
    const match = /^[BIESLUMW]-(.+)$/s.exec(label);
    if (match) types.add(match[1]);
  }
  for (const view of views) for (const span of view.spans) types.add(span.type);
  return [...types];
}
