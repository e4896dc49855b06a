// A text with spans marked in it, which may lie inside one another or cross.

const BLOCK = 1500; // characters, about, of the parts that the browser lays out when they are seen

function el(tag, options = {}, ...children) {
  const own = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (name === "class") own.className = value;
    else if (name.startsWith("on")) own.addEventListener(name.slice(2), value);
    else if (name === "data") Object.assign(own.dataset, value);
    else if (typeof value === "boolean") own.toggleAttribute(name, value);
    else own.setAttribute(name, value);
  }
  own.append(...children.filter((child) => child !== null)); // strings become texts, never markup
  return own;
}

/** [start, end) of parts of a text that begin lines. */
function blocksOf(text) {
  const blocks = [];
  let start = 0;
  while (start < text.length) {
    const line = text.indexOf("\n", Math.min(start + BLOCK, text.length) - 1);
    const end = line < 0 ? text.length : line + 1;
    blocks.push([start, end]);
    start = end;
  }
  return blocks;
}

/** Ranges as trees of pieces: where one crosses another's end it becomes two pieces. */
function nest(ranges, start, end) {
  const order = (a, b) => a.start - b.start || b.end - a.end || a.rank - b.rank;
  const waiting = ranges.map((own) => ({ rank: 0, ...own })).sort(order);
  const root = { start, end, children: [] };
  const open = [root];
  for (let n = 0; n < waiting.length; n++) {
    const own = { ...waiting[n], children: [] };
    while (open.at(-1).end <= own.start) open.pop();
    const outer = open.at(-1);
    if (own.end > outer.end) {
      const rest = { ...waiting[n], start: outer.end, continues: true };
      let place = n + 1;
      while (place < waiting.length && order(waiting[place], rest) < 0) place++;
      waiting.splice(place, 0, rest);
      own.end = outer.end;
      own.goesOn = true;
    }
    outer.children.push(own);
    open.push(own);
  }
  return root;
}

/** Parts of ranges (in order of their starts) inside of [start, end). */
function clipped(ranges, start, end) {
  return ranges.map((own) => ({
    ...own,
    start: Math.max(own.start, start),
    end: Math.min(own.end, end),
    continues: own.start < start,
    goesOn: own.end > end,
  }));
}

function inBlock(ranges, from, start, end) {
  const own = [];
  for (let n = from.first; n < ranges.length && ranges[n].start < end; n++) {
    if (ranges[n].end > start) own.push(ranges[n]);
    else if (n === from.first) from.first++;
  }
  return clipped(own, start, end);
}

/** The text with its ranges marked; `make(piece)` gives the element of a piece. */
function markedText(text, ranges, make) {
  const sorted = [...ranges].sort((a, b) => a.start - b.start);
  const from = { first: 0 };
  const fragment = document.createDocumentFragment();
  for (const [start, end] of blocksOf(text)) {
    const block = el("div", { class: "block", dir: "auto" });
    fill(block, nest(inBlock(sorted, from, start, end), start, end), text, make);
    fragment.append(block);
  }
  return fragment;
}

function fill(element, piece, text, make) {
  let place = piece.start;
  for (const child of piece.children) {
    if (child.start > place) element.append(text.slice(place, child.start));
    const own = make(child);
    fill(own, child, text, make);
    element.append(own);
    place = child.end;
  }
  if (piece.end > place) element.append(text.slice(place, piece.end));
}
