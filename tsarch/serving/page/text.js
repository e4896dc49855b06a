// Places in texts. Python counts code points, JavaScript counts UTF-16 units: an emoji is one of
// the former and two of the latter.

/** Code points of a text → its UTF-16 units. */
class Places {
  constructor(text) {
    this.units = /[\ud800-\udfff]/.test(text) ? unitsOf(text) : null;
    this.length = this.units ? this.units.length - 1 : text.length;
  }

  unit(point) {
    const own = Math.max(0, Math.min(point, this.length));
    return this.units ? this.units[own] : own;
  }
}

function unitsOf(text) {
  const units = [];
  let unit = 0;
  for (const letter of text) {
    units.push(unit);
    unit += letter.length;
  }
  return Uint32Array.from([...units, unit]);
}

function countPoints(text) {
  return text.length - (text.match(/[\ud800-\udbff][\udc00-\udfff]/g) || []).length;
}

// A word is what it is to `tsarch.data.plain_text`.
const WORD =
  /\p{Script=Han}|[!-/:-@[-`{-~\p{P}]|(?:(?!\p{Script=Han})[^\p{White_Space}!-/:-@[-`{-~\p{P}])+/gu;

/** [start, end) of a text's words. */
function wordsOf(text) {
  return Array.from(text.matchAll(WORD), (own) => [own.index, own.index + own[0].length]);
}

/** A list of words as a text, with the places of the words in it. */
function joined(tokens) {
  const words = [];
  let length = 0;
  for (const token of tokens) {
    words.push([length, length + token.length]);
    length += token.length + 1;
  }
  return { text: tokens.join(" "), words };
}

/** What spans say of each word: "" or, as IOB2, "B-PER"; of nested spans all. */
function wordTags(words, spans) {
  const tags = new Array(words.length).fill("");
  for (const span of spans) {
    let prefix = "B-";
    for (let n = firstEndingAfter(words, span.start); n < words.length; n++) {
      if (words[n][0] >= span.end) break;
      tags[n] += (tags[n] ? ", " : "") + prefix + span.type;
      prefix = "I-";
    }
  }
  return tags;
}

function firstEndingAfter(words, place) {
  let [low, high] = [0, words.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (words[middle][1] > place) high = middle;
    else low = middle + 1;
  }
  return low;
}

/** Which words of two lists don't stand, in order, in the other. */
function differingWords(ours, theirs) {
  const width = theirs.length + 1;
  const best = new Uint16Array((ours.length + 1) * width);
  for (let i = ours.length - 1; i >= 0; i--) {
    for (let j = theirs.length - 1; j >= 0; j--) {
      const same = ours[i] === theirs[j];
      const skipped = Math.max(best[(i + 1) * width + j], best[i * width + j + 1]);
      best[i * width + j] = same ? best[(i + 1) * width + j + 1] + 1 : skipped;
    }
  }
  const found = [new Set(ours.keys()), new Set(theirs.keys())];
  for (let i = 0, j = 0; i < ours.length && j < theirs.length; ) {
    if (ours[i] === theirs[j]) {
      found[0].delete(i++);
      found[1].delete(j++);
    } else if (best[(i + 1) * width + j] >= best[i * width + j + 1]) i++;
    else j++;
  }
  return found;
}
