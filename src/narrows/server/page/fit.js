/** What fits into a model's context. Only the server counts tokens; here they are estimated, from what it counted. */

/** The part of the context in whose steps room is dealt out, so that what is read first seldom moves while one types. */
const STEPS = 16;
/** What control tokens take, and BOS. */
const CONTROL = 8;
/** More than estimates are wrong by. */
const CAUTION = 1.1;

/** Tokens from which an average says something. */
const ENOUGH = 500;

const encoder = new TextEncoder();

/** Bytes a token: a careful guess, and from the first answer on as the server counted them. */
export class Estimate {
  _bytes = 2.8;

  tokens(text) {
    return Math.ceil(encoder.encode(text).length / this._bytes);
  }

  /**
   * So many tokens were in these texts. What is near enough stays: another estimate cuts files elsewhere, and then what
   * the server knows of them is of no use.
   */
  learn(texts, tokens) {
    const bytes = texts.reduce((sum, text) => sum + encoder.encode(text).length, 0) / tokens;
    if (tokens >= ENOUGH && !(this._bytes / CAUTION < bytes && bytes < this._bytes * CAUTION)) this._bytes = bytes;
  }

  /** There were more than it said. False where it cannot have been so wrong: a token is a byte at least. */
  lower() {
    this._bytes *= 0.75;
    return this._bytes >= 0.75;
  }
}

/**
 * What is sent of files and of the text around the cursor, if prompt and answer may have `window` tokens: {context,
 * read, before, after}. `read`: of every file {all, tokens}, the last files first served; of the first that does not
 * fit, its end.
 */
export function fitted(files, before, after, window, answer, estimate) {
  const tokens = (text) => Math.ceil(estimate.tokens(text) * CAUTION);
  const room = window - answer - CONTROL;
  const behind = head(after, Math.floor(room / 4), tokens);
  const front = tail(before, room - tokens(behind), tokens);
  const step = Math.max(1, Math.floor(window / STEPS));
  let left = room - Math.ceil((tokens(front) + tokens(behind)) / step) * step;
  const context = [];
  const read = [];
  for (const file of [...files].reverse()) {
    const part = left > 0 ? tail(file.text, left - 1, tokens) : "";
    if (part) context.unshift(part);
    left = part === file.text ? left - tokens(part) - 1 : 0;
    read.unshift({ all: part === file.text, tokens: part ? estimate.tokens(part) : 0 });
  }
  return { context, read, before: front, after: behind };
}

/** The lines at the end of a text that have at most so many tokens; of a single longer line, a part. */
function tail(text, room, tokens) {
  if (tokens(text) <= room) return text;
  const part = text.slice(text.length - longest(text.length, room, (length) => tokens(text.slice(-length))));
  const line = part.indexOf("\n") + 1;
  return line && line < part.length ? part.slice(line) : part.toWellFormed(); // which half a character is not
}

/** The same at the beginning. */
function head(text, room, tokens) {
  if (tokens(text) <= room) return text;
  const part = text.slice(0, longest(text.length, room, (length) => tokens(text.slice(0, length))));
  const line = part.lastIndexOf("\n") + 1;
  return line ? part.slice(0, line) : part.toWellFormed();
}

/** The largest length whose tokens fit. */
function longest(most, room, tokens) {
  let [fits, not] = [0, most];
  while (not - fits > 1) {
    const middle = (fits + not) >> 1;
    if (tokens(middle) <= room) fits = middle;
    else not = middle;
  }
  return fits;
}
