/** The Usage tab: one's month, and what was used in a span of days; to an administrator, everybody's. */

import { byId, element, table } from "./dom.js";
import { picodollars, plain, shown } from "./money.js";
import { NOTHING, plotDays } from "./plot.js";

const LATEST = 50; // requests
const DAY = 86_400_000; // milliseconds

/** Returns `show()`, which asks anew. */
export function startUsage(server) {
  const notice = byId("usage-notice");
  const from = byId("usage-from");
  const to = byId("usage-to");
  const csvButton = byId("usage-csv");
  let newest = 0;

  async function show() {
    const own = ++newest;
    byId("usage-cards").hidden = !server.key;
    byId("usage-keyless").hidden = Boolean(server.key);
    notice.textContent = "";
    if (!server.key) return;
    const isReversed = from.value > to.value;
    byId("usage-span").textContent = isReversed
      ? "The first day is behind the last; choose an earlier first day, or a later last one."
      : "";
    csvButton.disabled = true;
    byId("usage-by-model").hidden = isReversed;
    if (isReversed) showDays([], []);
    const span = new URLSearchParams({ from: from.value, to: to.value });
    try {
      const key = await server.get("/api/key");
      const isAdmin = key.scopes.includes("admin");
      const [days, models, requests, keys] = await Promise.all([
        isReversed ? null : server.get(`/api/usage?by=day&by=key&${span}`),
        isReversed ? null : server.get(`/api/usage?by=model&${span}`),
        server.get(`/api/requests?limit=${LATEST}`),
        isAdmin ? server.get("/api/keys") : null,
      ]);
      if (own !== newest) return;
      showMonth(key);
      if (!isReversed) {
        showDays(days.rows, daysBetween(from.value, to.value));
        byId("usage-models").replaceChildren(sums("By model", [["Model", "model"]], models));
        csvButton.disabled = !days.rows.length;
      }
      const names = new Map(keys?.keys.map((one) => [one.id, one.name]));
      byId("usage-requests").replaceChildren(latest(requests.rows, names));
      byId("usage-all-keys").hidden = !isAdmin;
      if (isAdmin) byId("usage-keys").replaceChildren(allKeys(keys.keys));
    } catch (problem) {
      if (own === newest && problem.status !== 401) notice.textContent = problem.message;
    }
  }

  csvButton.addEventListener("click", async () => {
    const span = new URLSearchParams({ from: from.value, to: to.value });
    try {
      const told = await server.get(`/api/usage?by=key&by=model&by=day&${span}`);
      save(`narrows-usage-${from.value}-${to.value}.csv`, csv(told.rows));
    } catch (problem) {
      notice.textContent = problem.message;
    }
  });

  const today = new Date().toISOString().slice(0, 10);
  to.value = today;
  from.value = `${today.slice(0, 8)}01`;
  for (const field of [from, to]) {
    field.addEventListener("change", () => {
      if (from.value && to.value) show();
    });
  }
  return show;
}

function showMonth(key) {
  const month = new Date(`${key.month}T00:00Z`).toLocaleDateString("en", { month: "long", year: "numeric", timeZone: "UTC" });
  const [spent, reserved] = [picodollars(key.spent), picodollars(key.reserved)];
  const parts = [
    element("div", { class: "head" }, element("h2", {}, `${month}: ${key.name}`), element("span", { class: "hint" }, key.id)),
    element("p", { class: "large" }, shown(spent), element("span", { class: "hint" },
      key.budget === null ? " spent, without a limit" : ` of ${shown(picodollars(key.budget))} spent`)),
  ];
  if (key.budget !== null) parts.push(meter(spent, reserved, picodollars(key.budget)));
  const facts = [
    ["reserved by requests under way", shown(reserved)],
    ["good for", key.scopes.join(", ")],
    ["expires (UTC)", key.expires === null ? null : when(key.expires)],
    ["requests a minute", key.requests_per_minute?.toLocaleString("en")],
    ["tokens a minute", key.tokens_per_minute?.toLocaleString("en")],
    ["requests at once", key.concurrency?.toLocaleString("en")],
  ].filter(([, value]) => value != null);
  parts.push(element("dl", { class: "facts" }, ...facts.map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value)))));
  byId("month").replaceChildren(...parts);
}

function meter(spent, reserved, budget) {
  const share = (amount) => (budget ? Math.min(100, Number((amount * 10_000n) / budget) / 100) : 100);
  const part = (kind, amount) => {
    const made = element("span", { class: kind });
    made.style.width = `${share(amount)}%`;
    return made;
  };
  return element("div", { class: "meter", role: "meter", "aria-label": "Part of the budget that is spent",
    "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": share(spent),
    "aria-valuetext": `${shown(spent)} spent and ${shown(reserved)} reserved of ${shown(budget)}` },
    part("spent", spent), part("reserved", reserved));
}

function daysBetween(first, last) {
  const days = [];
  for (let day = Date.parse(first); day <= Date.parse(last); day += DAY) days.push(new Date(day).toISOString().slice(0, 10));
  return days;
}

function showDays(rows, days) {
  const groups = new Map();
  for (const row of rows) {
    const group = groups.get(row.key) ?? { name: `${row.name} (${row.key})`, costs: new Map(), total: 0n };
    group.costs.set(row.day, picodollars(row.cost));
    group.total += picodollars(row.cost);
    groups.set(row.key, group);
  }
  const costliest = [...groups.values()].sort((one, other) => Number(other.total - one.total));
  plotDays(byId("usage-plot"), days, costliest);
  byId("usage-table").hidden = !rows.length;
  const total = { ...totals(rows), day: "Total", name: "" };
  byId("usage-days").replaceChildren(sums("By day and key", [["Day", "day"], ["Key", "name"]], { rows, total }));
}

/** Sums as a table: what they are grouped by, then the counts. */
function sums(caption, groups, { rows, total }) {
  if (!rows.length) return element("p", { class: "hint" }, NOTHING);
  const columns = [
    ...groups.map(([title, field]) => ({ title, of: (row) => row[field] ?? "Total" })),
    ...["requests", "hit", "miss", "output", "reasoning"].map((field, i) => ({
      title: ["Requests", "Cached", "Read", "Written", "Reasoning"][i],
      of: (row) => row[field].toLocaleString("en"),
      number: true,
    })),
    { title: "Cost", of: (row) => picodollars(row.cost), money: true },
  ];
  return table(caption, columns, rows, total);
}

function totals(rows) {
  const sum = { requests: 0, hit: 0, miss: 0, output: 0, reasoning: 0 };
  let cost = 0n;
  for (const row of rows) {
    for (const name of Object.keys(sum)) sum[name] += row[name];
    cost += picodollars(row.cost);
  }
  return { ...sum, cost: plain(cost) };
}

function allKeys(keys) {
  return table("All keys", [
    { title: "Name", of: (key) => key.name },
    { title: "Key", of: (key) => element("code", {}, key.id) },
    { title: "State", of: (key) => key.state },
    { title: "Good for", of: (key) => key.scopes.join(", ") },
    { title: "Spent", of: (key) => picodollars(key.spent), money: true },
    { title: "Reserved", of: (key) => picodollars(key.reserved), money: true },
    { title: "Budget", of: (key) => (key.budget === null ? "none" : shown(picodollars(key.budget))), number: true },
    { title: "Made (UTC)", of: (key) => when(key.created) },
  ], keys);
}

/** `names`: of keys, where they are known. */
function latest(rows, names) {
  if (!rows.length) return element("p", { class: "hint" }, "There were no requests yet.");
  return table("Latest requests", [
    { title: "Began (UTC)", of: (row) => when(row.started) },
    { title: "Key", of: (row) => names.get(row.key) ?? element("code", {}, row.key) },
    { title: "Model", of: (row) => row.model },
    { title: "Outcome", of: (row) => row.outcome ?? row.state },
    { title: "Cached", of: (row) => count(row.hit), number: true },
    { title: "Read", of: (row) => count(row.miss), number: true },
    { title: "Written", of: (row) => count(row.output), number: true },
    { title: "First token", of: (row) => seconds(row.first_token_seconds), number: true },
    { title: "Time", of: (row) => seconds(row.seconds), number: true },
    { title: "Cost", of: (row) => picodollars(row.cost), money: true },
  ], rows);
}

/** The columns of ledger/usage.py, a line for every sum. */
function csv(rows) {
  const fields = ["key", "name", "model", "day", "requests", "hit", "miss", "output", "reasoning", "cost"];
  const titles = { key: "key_id", name: "key_name", cost: "cost_dollars" };
  const quoted = (value) => (/[",\r\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : value);
  const lines = [fields.map((field) => titles[field] ?? field), ...rows.map((row) => fields.map((field) => row[field]))];
  return lines.map((line) => `${line.map(quoted).join(",")}\n`).join("");
}

function save(name, text) {
  const address = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  element("a", { href: address, download: name }).click();
  URL.revokeObjectURL(address);
}

function count(number) {
  return number == null ? "–" : number.toLocaleString("en");
}

function seconds(number) {
  return number == null ? "–" : `${number.toFixed(2)} s`;
}

/** A moment in UTC, as the ledger counts its days, to the second. */
function when(moment) {
  return new Date(moment).toISOString().slice(0, 19).replace("T", " ");
}
