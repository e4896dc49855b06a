// The form of `relation`: a sentence, two spans of whose words are marked.

const ENDS = ["head", "tail"];

/** [start, stop) after a word is chosen: beside the span it grows, inside it or far away it is new. */
function grown(span, word) {
  if (span && word === span[0] - 1) return [word, span[1]];
  if (span && word === span[1]) return [span[0], word + 1];
  return [word, word + 1];
}

function relationForm(run) {
  const names = Object.fromEntries(["tokens", ...ENDS].map((own) => [own, columnOf(run, own)]));
  const last = run.span_ends === "inclusive" ? 1 : 0; // rows name the word after a span, or its last
  const state = { tokens: [], head: null, tail: null };
  const sentence = area(3);
  const spaces = el("input", { type: "checkbox" });
  const words = el("div", { class: "words", role: "group", "aria-label": "Words of the sentence", dir: "auto" });
  const radios = ENDS.map((own) => el("input", { type: "radio", name: "end", value: own }));
  radios[0].checked = true;
  const said = el("p", { class: "hint", "aria-live": "polite" });

  function choose(word) {
    const end = radios.find((own) => own.checked).value;
    state[end] = grown(state[end], word);
    draw();
    words.children[word].focus();
  }

  function draw() {
    const buttons = state.tokens.map((token, n) => wordButton(token, n, state, choose));
    words.replaceChildren(...buttons);
    roving(words, "button");
    said.textContent = ENDS.map((end) => `${end}: ${spanned(state, end) || "not marked"}`).join(" · ");
  }

  function split() {
    const text = sentence.value.toWellFormed();
    const places = spaces.checked ? Array.from(text.matchAll(/\S+/g), (m) => [m.index, m.index + m[0].length]) : wordsOf(text);
    state.tokens = places.map(([start, end]) => text.slice(start, end));
    for (const end of ENDS) if (state[end] && state[end][1] > state.tokens.length) state[end] = null;
    draw();
  }

  sentence.addEventListener("input", split);
  spaces.addEventListener("change", split);
  draw();
  const choice = radios.map((own) => el("label", {}, own, ` ${own.value}`));
  return {
    element: el("div", {},
      labelled("Sentence", sentence),
      el("label", {}, spaces, " Words are what stands between spaces, punctuation with them"),
      el("fieldset", {}, el("legend", {}, "Choose the words of"), el("div", { class: "line" }, ...choice), words, said)),
    show(input) {
      const tokens = wordList(cell(input, names.tokens));
      const spans = ENDS.map((end) => cell(input, names[end]));
      if (!tokens || !spans.every((own) => Array.isArray(own) && own.length === 2)) return false;
      sentence.value = tokens.join(" ");
      spaces.checked = true;
      state.tokens = tokens;
      ENDS.forEach((end, n) => (state[end] = [spans[n][0], spans[n][1] + last]));
      draw();
      return true;
    },
    read() {
      needed(sentence, "The sentence");
      for (const end of ENDS) {
        if (!state[end]) throw new FormError(`Choose the words of the ${end}.`, words.firstChild);
      }
      const row = { [names.tokens]: state.tokens };
      for (const end of ENDS) row[names[end]] = [state[end][0], state[end][1] - last];
      return [row];
    },
  };
}

function spanned(state, end) {
  return state[end] ? state.tokens.slice(...state[end]).join(" ") : "";
}

function wordButton(token, n, state, choose) {
  const own = ENDS.filter((end) => state[end] && n >= state[end][0] && n < state[end][1]);
  const options = { type: "button", class: own.join(" "), "aria-pressed": String(own.length > 0) };
  const button = el("button", { ...options, onclick: () => choose(n) }, token);
  if (own.length) button.append(el("small", {}, ` ${own.join(", ")}`));
  return button;
}
