/** What an answer took: tokens, times, what it cost here and what the same tokens cost elsewhere. */

import { element } from "./dom.js";
import { aligned, costOf, picodollars, times } from "./money.js";

/** In the order in which they are shown; what the price book does not know is left out. */
const ELSEWHERE = ["deepseek-v4-flash", "deepseek-v4-pro", "claude-opus-4.8"];

/** Measures one answer; call it as the things happen. */
export class Clock {
  _began = performance.now();

  /** A piece of the answer has come. */
  piece() {
    this._last = performance.now();
    this._first ??= this._last;
  }

  /** Seconds to the first piece, and tokens a second behind it; null where there is no telling. */
  read(tokens) {
    if (this._first === undefined) return { first: null, speed: null };
    const seconds = (this._last - this._first) / 1000;
    return { first: (this._first - this._began) / 1000, speed: seconds > 0 ? (tokens - 1) / seconds : null };
  }
}

/** Shows the last answer and the sums of all since the page was opened, in every panel that it is given. */
export class Figures {
  _prices = new Map();
  _sums = { answers: 0, models: new Set(), prompt: 0, hit: 0, output: 0, here: 0n, elsewhere: new Map() };

  constructor(panels) {
    this._panels = panels;
    this._panels.forEach((panel) => panel.replaceChildren(...nothing()));
  }

  /** The server's list of prices (GET /api/prices). */
  setPrices(told) {
    this._prices = new Map(told.models.map((one) => [one.model, one.picodollars]));
  }

  /** An answer has ended: which model's, the usage that it told, and its clock. */
  add(model, usage, clock) {
    const tokens = {
      hit: usage.prompt_cache_hit_tokens,
      miss: usage.prompt_cache_miss_tokens,
      output: usage.completion_tokens,
    };
    const here = usage.cost === undefined ? null : picodollars(usage.cost);
    const elsewhere = ELSEWHERE.filter((name) => this._prices.has(name) && name !== model).map((name) => [
      name,
      costOf(tokens, this._prices.get(name)),
    ]);
    const sums = this._sums;
    sums.answers += 1;
    sums.models.add(model);
    sums.prompt += usage.prompt_tokens;
    sums.hit += tokens.hit;
    sums.output += tokens.output;
    sums.here += here ?? 0n;
    for (const [name, cost] of elsewhere) sums.elsewhere.set(name, (sums.elsewhere.get(name) ?? 0n) + cost);
    const tables = [
      { caption: "Cost of this answer", model, here: here ?? 0n, elsewhere },
      {
        caption: "Cost of all answers",
        model: [...sums.models].join(", "),
        here: sums.here,
        elsewhere: [...sums.elsewhere],
      },
    ];
    for (const panel of this._panels) {
      const [ofThis, ofAll] = costs(tables);
      panel.replaceChildren(
        element("h2", {}, "This answer"),
        counts(usage.prompt_tokens, tokens.hit, tokens.output, clock.read(tokens.output)),
        ofThis,
        element("h3", {}, `Since you opened the page: ${sums.answers} ${sums.answers === 1 ? "answer" : "answers"}`),
        counts(sums.prompt, sums.hit, sums.output),
        ofAll,
        element("p", { class: "hint" }, "The same tokens at each price list, cached ones at its cached price. What was",
          " cut short is under Usage."),
      );
    }
  }
}

function nothing() {
  return [
    element("h2", {}, "Figures"),
    element("p", { class: "hint" }, "Tokens, times and cost of an answer appear here, beside what the same tokens cost",
      " elsewhere."),
  ];
}

function counts(prompt, hit, output, times = null) {
  const pairs = [["in", whole(prompt)], ["cached", whole(hit)], ["out", whole(output)]];
  if (times) {
    pairs.push(["first token", times.first === null ? "–" : `${times.first.toFixed(2)} s`]);
    pairs.push(["tokens/s", times.speed === null ? "–" : whole(Number(times.speed.toPrecision(3)))]);
  }
  return element("dl", { class: "counts" }, ...pairs.map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value))));
}

/** A table for each {caption, model, here, elsewhere}, whose columns stand below one another. */
function costs(all) {
  const rows = all.map(({ model, here, elsewhere }) => [
    { name: model, cost: here, ratio: "1×" },
    ...elsewhere.map(([name, cost]) => ({ name, cost, ratio: times(cost, here) ?? "–" })),
  ]);
  const texts = aligned(rows.flat().map(({ cost }) => cost));
  rows.flat().forEach((row, i) => (row.text = texts[i]));
  const widest = (field) => Math.max(...rows.flat().map((row) => row[field].length));
  return all.map(({ caption }, number) => element("table", { class: "costs" },
    element("caption", { class: "unseen" }, caption),
    element("colgroup", {}, element("col"), column(widest("text")), column(widest("ratio") + 2)),
    element("thead", { class: "unseen" }, element("tr", {}, ...["Model", "Cost", "Times as much"].map((title) =>
      element("th", { scope: "col" }, title)))),
    element("tbody", {}, ...rows[number].map(({ name, text, ratio }, i) => element("tr", { class: i ? null : "here" },
      element("th", { scope: "row", title: name }, name), element("td", { class: "number" }, text),
      element("td", { class: "number ratio" }, ratio))))));
}

/** A column as wide as so many digits. */
function column(digits) {
  const made = element("col");
  made.style.width = `${digits}ch`;
  return made;
}

function whole(number) {
  return number.toLocaleString("en");
}
