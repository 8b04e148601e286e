/** A picture of what every day cost: one stacked bar a day, as ledger/plot.py draws it. */

import { linear } from "./axes.js";
import { drawn, element, keepDrawn } from "./dom.js";
import { shown } from "./money.js";

/** Groups with a colour of their own; the others share one. */
const MOST = 7;
const HEIGHT = 220;
const MARGIN = { top: 12, right: 4, bottom: 24 };
/** As wide as a digit beside the axis, and the least that is left free there. */
const DIGIT = 7;
const LEAST = 84;

export const NOTHING = "Nothing was used in these days.";

/**
 * Draw costs into a place, as wide as it is. `days`: their names in order; `groups`: {name, costs: Map of day to
 * picodollars} each, the costliest first. Where nothing cost anything, a sentence stands instead; without days, nothing.
 */
export function plotDays(place, days, groups) {
  const own = groups.slice(0, MOST);
  const rest = groups.slice(MOST);
  if (rest.length) own.push({ name: `${rest.length} others`, costs: summed(rest) });
  const totals = days.map((day) => own.reduce((sum, group) => sum + (group.costs.get(day) ?? 0n), 0n));
  const most = totals.reduce((one, other) => (one > other ? one : other), 0n);
  if (!most) {
    const sentence = groups.length ? "What was used in these days cost nothing." : NOTHING;
    place.observer?.disconnect();
    return place.replaceChildren(...(days.length ? [element("p", { class: "hint" }, sentence)] : []));
  }
  keepDrawn(place, () => {
    const width = Math.max(240, place.clientWidth);
    place.replaceChildren(picture(width, days, own, totals, most), legend(own));
  });
}

function picture(width, days, groups, totals, most) {
  const axis = linear(most);
  const left = Math.max(LEAST, 12 + DIGIT * Math.max(...axis.ticks.map((amount) => shown(amount).length)));
  const inner = { width: width - left - MARGIN.right, height: HEIGHT - MARGIN.top - MARGIN.bottom };
  const x = (i) => left + (inner.width * i) / days.length;
  const tall = (amount) => inner.height * axis.share(amount);
  const bottom = HEIGHT - MARGIN.bottom;
  const barWidth = Math.min(56, Math.max(1, (inner.width / days.length) * 0.72));
  const marks = [];
  for (const amount of axis.ticks) {
    const y = bottom - tall(amount);
    marks.push(drawn("line", { class: "grid", x1: left, x2: width - MARGIN.right, y1: y, y2: y }));
    marks.push(drawn("text", { class: "tick", x: left - 8, y: y + 4, "text-anchor": "end" }, shown(amount)));
  }
  const every = Math.ceil((days.length * 56) / inner.width);
  days.forEach((day, i) => {
    const center = x(i + 0.5);
    if (i % every === 0) {
      marks.push(drawn("text", { class: "tick", x: center, y: HEIGHT - 6, "text-anchor": "middle" }, short(day)));
    }
    let y = bottom;
    groups.forEach((group, number) => {
      const height = tall(group.costs.get(day) ?? 0n);
      if (!height) return;
      y -= height;
      marks.push(drawn("rect", { class: `series-${number}`, x: center - barWidth / 2, y, width: barWidth, height },
        drawn("title", {}, `${day}, ${group.name}: ${shown(group.costs.get(day))}`)));
    });
  });
  const total = shown(totals.reduce((sum, one) => sum + one, 0n));
  const highest = days[totals.indexOf(most)];
  const description =
    `${days.length} days from ${days[0]} to ${days.at(-1)}, ${total} in all; most on ${highest}, ${shown(most)}. ` +
    groups.map((group) => `${group.name}: ${shown(summed([group]).total)}`).join("; ");
  return drawn("svg", { role: "img", "aria-labelledby": "plot-title plot-text", viewBox: `0 0 ${width} ${HEIGHT}`,
    width, height: HEIGHT },
    drawn("title", { id: "plot-title" }, "Cost by day and key, in dollars"),
    drawn("desc", { id: "plot-text" }, description), ...marks);
}

function legend(groups) {
  return element("ul", { class: "legend" }, ...groups.map(({ name }, number) =>
    element("li", {}, element("span", { class: `swatch series-${number}`, "aria-hidden": "true" }), name)));
}

/** Costs of several groups by day, with their total. */
function summed(groups) {
  const costs = new Map();
  costs.total = 0n;
  for (const group of groups) {
    for (const [day, cost] of group.costs) {
      costs.set(day, (costs.get(day) ?? 0n) + cost);
      costs.total += cost;
    }
  }
  return costs;
}

function short(day) {
  return new Date(`${day}T00:00Z`).toLocaleDateString("en", { month: "short", day: "numeric", timeZone: "UTC" });
}
