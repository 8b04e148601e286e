/** A picture of amounts against a number: a line for every series, and a dot on each at the chosen number. */

import { drawn, keepDrawn } from "./dom.js";

const HEIGHT = 264;
const MARGIN = { top: 10, right: 18, bottom: 46 };
/** As wide as a digit beside the axis, and the least that is left free there. */
const DIGIT = 7;
const LEAST = 44;
/** Straight parts between two points, which a logarithmic axis bends. */
const PARTS = 8;
/** Series with a colour of their own; behind them the same ones come dashed. */
const COLOURS = 8;

/** The class that gives a mark the colour of the series of this number. */
export function seriesClass(number) {
  return `series-${number % COLOURS}${number < COLOURS ? "" : " again"}`;
}

/**
 * Draw into a place, as wide as it is, {title, description, x, y, lines, at}. `x`: {title, most, ticks, text(number)},
 * from 0 on; `y`: an axis of axes.js, with text(amount); `lines`: {name, number: of its series, points: [x, amount]s,
 * chosen: its amount at the number `at`}.
 */
export function plotLines(place, chart) {
  keepDrawn(place, () => place.replaceChildren(picture(place.id, Math.max(240, place.clientWidth), chart)));
}

function picture(id, width, { title, description, x, y, lines, at }) {
  const left = Math.max(LEAST, 12 + DIGIT * Math.max(...y.ticks.map((tick) => y.text(tick).length)));
  const [right, bottom] = [width - MARGIN.right, HEIGHT - MARGIN.bottom];
  const across = (number) => left + ((right - left) * number) / x.most;
  const up = (amount) => bottom - (bottom - MARGIN.top) * y.share(amount);
  const text = (attributes, content) => drawn("text", { class: "tick", ...attributes }, content);
  const marks = y.ticks.flatMap((tick) => [
    drawn("line", { class: "grid", x1: left, x2: right, y1: up(tick), y2: up(tick) }),
    text({ x: left - 8, y: up(tick) + 4, "text-anchor": "end" }, y.text(tick)),
  ]);
  for (const tick of x.ticks) {
    marks.push(drawn("line", { class: "grid", x1: across(tick), x2: across(tick), y1: bottom, y2: bottom + 5 }));
    marks.push(text({ x: across(tick), y: bottom + 19, "text-anchor": "middle" }, x.text(tick)));
  }
  marks.push(text({ x: (left + right) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, x.title));
  marks.push(drawn("line", { class: "chosen", x1: across(at), x2: across(at), y1: MARGIN.top, y2: bottom }));
  for (const { name, number, points } of lines) {
    const places = between(points).map(([one, amount]) => `${across(one).toFixed(1)},${up(amount).toFixed(1)}`);
    const line = { class: `line ${seriesClass(number)}`, points: places.join(" ") };
    marks.push(drawn("polyline", line, drawn("title", {}, name)));
  }
  for (const { name, number, chosen } of lines) {
    marks.push(drawn("circle", { class: `dot ${seriesClass(number)}`, cx: across(at), cy: up(chosen), r: 5 },
      drawn("title", {}, `${name}: ${y.text(chosen)}`)));
  }
  return drawn("svg", { role: "img", "aria-labelledby": `${id}-name ${id}-words`, viewBox: `0 0 ${width} ${HEIGHT}`,
    width, height: HEIGHT },
    drawn("title", { id: `${id}-name` }, title),
    drawn("desc", { id: `${id}-words` }, description), ...marks);
}

/** The points with others on the straight ways between them, as places need them: not exactly. */
function between(points) {
  const known = points.map(([number, amount]) => [number, Number(amount)]);
  return known.flatMap(([number, amount], i) => {
    if (i === 0) return [[number, amount]];
    const [fromNumber, fromAmount] = known[i - 1];
    return Array.from({ length: PARTS }, (_, part) => (part + 1) / PARTS).map((share) => [
      fromNumber + share * (number - fromNumber),
      fromAmount + share * (amount - fromAmount),
    ]);
  });
}
