/** Elements by name and by description. Text goes in as text, never as markup. */

import { aligned } from "./money.js";

/** The element of the page that has this id. */
export const byId = (id) => document.getElementById(id);

/** A new element: attributes by name (null leaves one out, a function listens), then children or texts. */
export function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** The same in SVG. */
export function drawn(name, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value !== null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** Draw what depends on the width of a place, and again whenever that changes. */
export function keepDrawn(place, draw) {
  place.observer?.disconnect();
  draw();
  let width = place.clientWidth;
  place.observer = new ResizeObserver(() => {
    if (place.clientWidth === width) return;
    width = place.clientWidth;
    draw();
  });
  place.observer.observe(place);
}

/**
 * A table. Columns: {title, of(row), number: whether it is set flush right, money: whether it is picodollars}; `of` gives
 * text, an element, or a BigInt of money. It scrolls by itself where it is too large, by keys too.
 */
export function table(caption, columns, rows, foot = null) {
  const all = foot ? [...rows, foot] : rows;
  const cells = columns.map((column) => {
    const values = all.map(column.of);
    return column.money ? aligned(values) : values;
  });
  const cell = (name, column, value) =>
    element(name, { class: column.number || column.money ? "number" : null, scope: name === "th" ? "col" : null }, value);
  const line = (name, values) => element("tr", {}, ...columns.map((column, i) => cell(name, column, values[i])));
  const made = element(
    "table",
    {},
    element("caption", { class: "unseen" }, caption),
    element("thead", {}, line("th", columns.map((column) => column.title))),
    element("tbody", {}, ...rows.map((_, i) => line("td", cells.map((values) => values[i])))),
  );
  if (foot) made.append(element("tfoot", {}, line("td", cells.map((values) => values[rows.length]))));
  return element("div", { class: "scroll", role: "region", tabindex: 0, "aria-label": caption }, made);
}

/** Give a select these options, [value, text] each, and keep what is chosen if it is still there. */
export function fillSelect(select, options) {
  const before = select.value;
  select.replaceChildren(...options.map(([value, text]) => element("option", { value }, text)));
  select.disabled = !options.length;
  if (options.some(([value]) => String(value) === before)) select.value = before;
}
