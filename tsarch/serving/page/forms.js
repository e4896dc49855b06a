// What is asked, for each task. A form: `element`, `show(input)` (false: it can't), `read()` → inputs.

class FormError extends Error {
  constructor(message, field) {
    super(message);
    this.field = field;
  }
}

let fieldNumber = 0;

/** A label and its field, under one another. */
function labelled(text, field, hint = "") {
  field.id = `field-${++fieldNumber}`;
  const parts = [el("label", { for: field.id }, text), field];
  if (hint) {
    field.setAttribute("aria-describedby", `${field.id}-hint`);
    parts.push(el("p", { class: "hint", id: `${field.id}-hint` }, hint));
  }
  return el("div", { class: "field" }, ...parts);
}

const GROWING = 4000; // characters up to which a field grows with its text: the browser lays out all of it

function area(rows) {
  const field = el("textarea", { rows: String(rows), dir: "auto", spellcheck: "false" });
  field.addEventListener("input", () => sized(field));
  return field;
}

function sized(field) {
  field.classList.toggle("full", field.value.length > GROWING);
}

function needed(field, what) {
  const text = field.value.toWellFormed();
  if (!text.trim()) throw new FormError(`${what} is empty.`, field);
  return text;
}

function columnOf(run, name) {
  return (run.columns && run.columns[name]) || name;
}

/** A cell of a row; "translation.en" is what lies inside. */
function cell(row, column) {
  if (column in row) return row[column];
  return column.split(".").reduce((own, name) => own?.[name], row);
}

function wordList(value) {
  return Array.isArray(value) && value.every((word) => typeof word === "string") ? value : null;
}

/** A text field that remembers what it was filled from: until it's edited, that is asked. */
class Remembered {
  constructor(field) {
    this.field = field;
    this.given = null;
  }

  fill(text, input) {
    this.field.value = text;
    sized(this.field);
    this.given = { value: this.field.value, input }; // browsers make CR LF one LF
  }

  input(otherwise) {
    return this.given && this.given.value === this.field.value ? this.given.input : otherwise();
  }
}

function textForm(run, label, column) {
  const field = area(7);
  const count = el("output", { class: "count" });
  const told = () => (count.value = `${countPoints(field.value).toLocaleString("en")} characters`);
  const remembered = new Remembered(field);
  field.addEventListener("input", told);
  const lines = el("input", { type: "checkbox" });
  const byLine = el("label", {}, lines, " Each line is a sentence of one document");
  byLine.hidden = run.task !== "classification";
  told();
  return {
    element: el("div", {}, labelled(label, field), el("div", { class: "line" }, count, byLine)),
    show(input) {
      const own = typeof input === "object" && !Array.isArray(input) ? cell(input, column) : input;
      const text = wordList(own) ? own.join(" ") : own;
      if (typeof text !== "string") return false;
      remembered.fill(text, input);
      lines.checked = false;
      told();
      return true;
    },
    read() {
      const text = needed(field, label);
      if (!lines.checked) return [remembered.input(() => text)];
      const sentences = text.split("\n").filter((line) => line.trim());
      const document = columnOf(run, "doc_id");
      return sentences.map((line) => ({ [column]: line, [document]: "document" }));
    },
  };
}

function qaForm(run) {
  const [question, context] = [el("input", { type: "text", dir: "auto" }), area(7)];
  const names = { question: columnOf(run, "question"), context: columnOf(run, "context") };
  const remembered = new Remembered(context);
  return {
    element: el("div", {}, labelled("Question", question), labelled("Passage", context)),
    show(input) {
      const [asked, passage] = [cell(input, names.question), cell(input, names.context)];
      if (typeof asked !== "string" || typeof passage !== "string") return false;
      question.value = asked;
      remembered.fill(passage, passage);
      return true;
    },
    read() {
      const asked = needed(question, "The question");
      const typed = needed(context, "The passage");
      return [{ [names.question]: asked, [names.context]: remembered.input(() => typed) }];
    },
  };
}

function dialogueForm(run) {
  const column = columnOf(run, "history");
  const turns = el("ol", { class: "turns" });
  const add = (text = "") => {
    const field = area(1);
    field.value = text;
    field.setAttribute("aria-label", "Turn");
    const remove = el("button", { type: "button", "aria-label": "Remove this turn" }, "Remove");
    const item = el("li", {}, el("div", {}, field, remove));
    remove.addEventListener("click", () => {
      item.remove();
      more.focus();
    });
    turns.append(item);
    return field;
  };
  const more = el("button", { type: "button", onclick: () => add().focus() }, "Add a turn");
  add();
  return {
    element: el("div", {}, el("p", { class: "label" }, "Turns so far"), turns, more),
    show(input) {
      const own = wordList(cell(input, column));
      if (!own) return false;
      turns.replaceChildren();
      own.forEach(add);
      return true;
    },
    read() {
      const fields = [...turns.querySelectorAll("textarea")];
      if (!fields.length) throw new FormError("There is no turn.", more);
      return [{ [column]: fields.map((field) => needed(field, "A turn")) }];
    },
  };
}

/** The inputs as the API takes them. */
function jsonForm() {
  const field = area(12);
  field.className = "code";
  const hint = "A list: texts, lists of words, or rows (column: value).";
  return {
    element: labelled("Inputs as JSON", field, hint),
    show(inputs) {
      field.value = JSON.stringify(inputs, null, 1);
      sized(field);
      return true;
    },
    read() {
      let own;
      try {
        own = JSON.parse(needed(field, "The JSON"));
      } catch (error) {
        throw error instanceof FormError ? error : new FormError(`This isn't JSON: ${error.message}`, field);
      }
      if (!Array.isArray(own) || !own.length) throw new FormError("Give a list of inputs: [...]", field);
      return own;
    },
  };
}

function formOf(run) {
  const own = {
    ner: () => textForm(run, "Document", columnOf(run, "tokens")),
    classification: () => textForm(run, "Text", columnOf(run, "text")),
    translation: () => textForm(run, "Source", columnOf(run, "source")),
    summarization: () => textForm(run, "Document", columnOf(run, "document")),
    relation: () => relationForm(run),
    qa: () => qaForm(run),
    dialogue: () => dialogueForm(run),
  }[run.task];
  return own ? own() : jsonForm();
}
