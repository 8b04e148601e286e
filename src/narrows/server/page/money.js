/** Exact money, as economics/money.py has it: whole picodollars (1e-12 $), in BigInt. */

const DOLLAR = 10n ** 12n;

/** A text of dollars, such as "0.000003625", as picodollars. */
export function picodollars(dollars) {
  const [whole, decimals = ""] = dollars.split(".");
  return BigInt(whole) * DOLLAR + BigInt(decimals.padEnd(12, "0"));
}

/** Picodollars as dollars for a program, exactly: 0.000003625, and 1234.50 with two decimals at least. */
export function plain(amount) {
  const decimals = String(amount % DOLLAR).padStart(12, "0").replace(/0+$/, "").padEnd(2, "0");
  return `${amount / DOLLAR}.${decimals}`;
}

/** The same for a reader: $1,234.50. */
export function shown(amount) {
  const [whole, decimals] = plain(amount).split(".");
  return `$${Number(whole).toLocaleString("en")}.${decimals}`;
}

/** Amounts as `shown`, filled up with spaces as wide as digits, so that flush right their points stand in a line. */
export function aligned(amounts) {
  const texts = amounts.map(shown);
  const decimals = (text) => text.length - text.indexOf(".");
  const most = Math.max(0, ...texts.map(decimals));
  return texts.map((text) => text + "\u2007".repeat(most - decimals(text)));
}

/** What so many tokens cost, {hit, miss, output} at picodollars of the same names. */
export function costOf(tokens, price) {
  return ["hit", "miss", "output"].reduce((sum, kind) => sum + BigInt(tokens[kind]) * BigInt(price[kind]), 0n);
}

/** How many times as much one amount is as another, to three digits: "14×"; null where the other is nothing. */
export function times(amount, other) {
  if (other === 0n) return null;
  const ratio = Number((amount * 1_000_000n) / other) / 1_000_000;
  return `${ratio.toLocaleString("en", { maximumSignificantDigits: 3 })}×`;
}
