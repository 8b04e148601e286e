/** The Plan tab: what a token takes at a context, and what a month of tokens costs, at what sliders say. */

import { linear, logarithmic } from "./axes.js";
import { byId, element, table } from "./dom.js";
import { plotLines, seriesClass } from "./lines.js";
import { picodollars, shown, times } from "./money.js";
import { startSlider } from "./slider.js";

const QUIET = 80; // milliseconds without a movement, after which the server is asked
const K = 1024;
const M = K * K;
const GIGA = 1e9;
const MILLION = 1_000_000n;

const PREDECESSOR = "deepseek-v3.2";
/** In the first colours of all, whatever else has a price. */
const FIRST = ["deepseek-v4-pro", "deepseek-v4-flash", PREDECESSOR];

const CONTEXTS = [4, 8, 16, 32, 64, 128, 256, 512].flatMap((number) => [number * K, 1.5 * number * K]).concat(M);
const TOKENS = [6, 7, 8, 9, 10, 11].flatMap((power) => [1, 2, 5].map((first) => first * 10 ** power)).concat(10 ** 12);
const SHARES = Array.from({ length: 101 }, (_, percent) => percent / 100);

/** Returns `show()`, which asks anew. */
export function startPlan(server) {
  const notice = byId("plan-notice");
  let asking = new AbortController();
  let waiting = null;

  const sliders = {
    context: startSlider("plan-context", { values: CONTEXTS, first: M, words: inTokens(contextText) }, moved),
    tokens: startSlider("plan-tokens", { values: TOKENS, first: 10 ** 8, words: inTokens(countText) }, moved),
    written: startSlider("plan-written", { values: SHARES, first: 0.1, words: percentText }, moved),
    cached: startSlider("plan-cached", { values: SHARES, first: 0.5, words: percentText }, moved),
  };

  function moved() {
    clearTimeout(waiting);
    waiting = setTimeout(show, QUIET);
  }

  async function show() {
    clearTimeout(waiting);
    asking.abort(); // the older answer is not wanted any more, and must not come after the newer one
    asking = new AbortController();
    const { signal } = asking;
    byId("plan-cards").hidden = !server.key;
    byId("plan-keyless").hidden = Boolean(server.key);
    notice.textContent = "";
    if (!server.key) return;
    const settings = Object.fromEntries(Object.entries(sliders).map(([name, chosen]) => [name, chosen()]));
    try {
      const told = await server.get(`/api/plan?${new URLSearchParams(settings)}`, signal);
      setResults(true);
      showToken(told);
      showMonth(told.month, settings.cached);
    } catch (problem) {
      if (problem.name === "AbortError") return;
      setResults(false); // those of other settings would stand under these
      if (problem.status !== 401) notice.textContent = problem.message;
    }
  }

  return show;
}

function setResults(whether) {
  for (const result of byId("plan-cards").querySelectorAll("[data-result]")) result.hidden = !whether;
}

function showToken({ context, efficiency }) {
  const text = contextText(context);
  byId("plan-token-words").textContent = `At ${text} tokens ${tokenWords(efficiency)}`;
  const kinds = [
    { id: "plan-work", field: "flops", index: 1, title: "GFLOPs a token", unit: "GFLOPs" },
    { id: "plan-history", field: "history_bytes", index: 2, title: "GB of history", unit: "GB" },
  ];
  for (const { id, field, index, title, unit } of kinds) {
    const lines = Object.entries(efficiency).map(([name, found]) => ({
      name,
      number: FIRST.indexOf(name),
      points: found.curve.map((point) => [point[0], BigInt(Math.round(point[index]))]),
      chosen: BigInt(Math.round(found[field])),
    }));
    const most = lines.flatMap(({ points }) => points).reduce((one, [, amount]) => (one > amount ? one : amount), 1n);
    const [least] = lines[0].points[0];
    plotLines(byId(id), {
      title: `${title} against the context`,
      description: `From ${contextText(least)} to ${text} tokens. ` + lines.map(({ name, points, chosen }) =>
        `${name}: from ${giga(points[0][1])} to ${giga(chosen)} ${unit}`).join("; "),
      x: { title: "tokens of context", most: context, ticks: doublings(context), text: contextText },
      y: { ...linear(most), text: gigaTick },
      lines,
      at: context,
    });
    byId(`${id}-figures`).replaceChildren(table(`${title} at ${text} tokens`, [
      { title: "Model", of: named },
      { title: unit, of: ({ chosen }) => giga(chosen), number: true },
      { title: "Of V3.2's", of: ({ name }) => partOf(efficiency, name, field), number: true },
    ], lines));
    byId(`${id}-curves`).replaceChildren(table(`${title} up to ${text} tokens`, [
      { title: "Context", of: (i) => lines[0].points[i][0].toLocaleString("en"), number: true },
      ...lines.map(({ name, points }) => ({ title: name, of: (i) => giga(points[i][1]), number: true })),
    ], [...lines[0].points.keys()]));
  }
}

function tokenWords(efficiency) {
  const others = Object.keys(efficiency).filter((name) => name !== PREDECESSOR);
  return others.map((name, i) => {
    const [work, memory] = ["flops", "history_bytes"].map((field) => partOf(efficiency, name, field));
    if (i) return `${name} takes ${work} and ${memory}`;
    return `${name} takes ${work} of ${PREDECESSOR}'s operations and ${memory} of its memory`;
  }).join("; ").concat(".");
}

function showMonth({ tokens, costs: bills, by_cached: byCached }, cached) {
  const costs = bills.map((bill) => ({ ...bill, name: bill.model, total: picodollars(bill.total) }));
  const { hit, miss, output } = tokens;
  byId("plan-month-words").textContent =
    `${hit.toLocaleString("en")} tokens cached, ${miss.toLocaleString("en")} read and ${output.toLocaleString("en")} ` +
    "written, at the prices of today.";
  const others = costs.map(({ name }) => name).filter((name) => !FIRST.includes(name));
  const lines = costs
    .map((cost) => ({
      ...cost,
      number: [...FIRST, ...others].indexOf(cost.name),
      points: byCached.costs[cost.model].map((dollars, i) => [byCached.shares[i], picodollars(dollars)]),
      chosen: cost.total,
    }))
    .sort((one, other) => Number(other.total - one.total));
  const amounts = lines.flatMap(({ points }) => points.map(([, amount]) => amount)).filter((amount) => amount > 0n);
  const [least, most] = [(one, other) => one < other, (one, other) => one > other].map((isBetter) =>
    amounts.reduce((one, other) => (isBetter(other, one) ? other : one), amounts[0] ?? 1n));
  plotLines(byId("plan-cost"), {
    title: "Dollars a month against the cached share",
    description: `From nothing cached to all, ${percentText(cached)} chosen. ${lines.map(costWords).join("; ")}`,
    x: { title: "cached share of what is read", most: 1, ticks: [0, 0.2, 0.4, 0.6, 0.8, 1], text: percentText },
    y: { ...logarithmic(least, most), text: roundText },
    lines,
    at: cached,
  });
  byId("plan-costs").replaceChildren(table(`A month at ${percentText(cached)} cached`, [
    { title: "Model", of: named },
    { title: "Together", of: ({ total }) => total, money: true },
    { title: "Times less than the dearest", of: ({ total }) => times(lines[0].total, total) ?? "–", number: true },
    ...["hit", "miss", "output"].map((kind, i) =>
      ({ title: ["Cached", "Read", "Written"][i], of: (line) => picodollars(line[kind]), money: true })),
    { title: "Price since", of: ({ since }) => since },
  ], lines));
  byId("plan-cost-curves").replaceChildren(table("Dollars a month by the cached share", [
    { title: "Cached", of: (i) => percentText(byCached.shares[i]), number: true },
    ...lines.map(({ name, points }) => ({ title: name, of: (i) => points[i][1], money: true })),
  ], [...byCached.shares.keys()]));
}

function costWords({ name, points, total }) {
  const [first, last] = [points[0], points.at(-1)].map(([, amount]) => shown(amount));
  return `${name}: from ${first} to ${last}, ${shown(total)} at the chosen share`;
}

/** A model's name behind the colour of its line. */
function named({ name, number }) {
  return element("span", {}, element("span", { class: `swatch ${seriesClass(number)}`, "aria-hidden": "true" }), name);
}

/** Ticks up to a context, a power of two apart. */
function doublings(most) {
  let step = 1;
  while (step * 4 < most) step *= 2;
  return Array.from({ length: Math.floor(most / step) + 1 }, (_, i) => i * step);
}

/** 1.5K, 128K, 1M; 0. */
function contextText(tokens) {
  if (tokens >= M) return `${tokens / M}M`;
  return tokens < K ? String(tokens) : `${tokens / K}K`;
}

function inTokens(text) {
  return (tokens) => `${text(tokens)} tokens`;
}

/** 500 million. */
function countText(tokens) {
  const [name, unit] = [["trillion", 1e12], ["billion", 1e9], ["million", 1e6]].find(([, one]) => tokens >= one);
  return `${tokens / unit} ${name}`;
}

/** 80%. */
function percentText(share) {
  return `${Math.round(share * 100)}%`;
}

/** Of what the predecessor takes: 26.7%. */
function partOf(efficiency, name, field) {
  return `${((efficiency[name][field] / efficiency[PREDECESSOR][field]) * 100).toFixed(1)}%`;
}

/** In billions: 319.4, and 5.28. */
function giga(amount) {
  const value = Number(amount) / GIGA;
  if (value >= 10) return value.toLocaleString("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
  return value.toLocaleString("en", { minimumSignificantDigits: 3, maximumSignificantDigits: 3 });
}

/** The same for a round amount: 1,500, and 0.05. */
function gigaTick(amount) {
  return (Number(amount) / GIGA).toLocaleString("en", { maximumSignificantDigits: 3 });
}

/** An amount without empty decimals and zeros: $25M. */
function roundText(amount) {
  const million = picodollars("1000000");
  const text = amount >= million && amount % million === 0n ? `${shown(amount / MILLION)}M` : shown(amount);
  return text.replace(/\.00(?=M?$)/, "");
}
