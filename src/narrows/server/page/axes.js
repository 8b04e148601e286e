/** Axes of whole amounts (BigInt) from 0: their ticks, exactly, and where an amount stands between their ends. */

/** Ticks of a logarithmic axis. */
const MOST = 7;

/** Even steps from nothing on: {ticks, share(amount): 0 at the start and 1 at the end}. Places alone are not exact. */
export function linear(most) {
  const step = niceStep(most);
  const top = step * ((most + step - 1n) / step);
  const ticks = [];
  for (let tick = 0n; tick <= top; tick += step) ticks.push(tick);
  return { ticks, share: (amount) => Number(amount) / Number(top) };
}

/** The same in even ratios; what is below `least`, such as nothing, stands at the start. */
export function logarithmic(least, most) {
  const powers = [1n];
  while (powers.at(-1) < most || powers.at(-1) <= least) powers.push(powers.at(-1) * 10n);
  const fine = enclosing(powers.flatMap((power) => [power, 2n * power, 5n * power]), least, most);
  const steps = fine.length <= MOST ? fine : enclosing(powers, least, most);
  const [start, end] = [steps[0], steps.at(-1)].map(position);
  const every = Math.ceil(steps.length / MOST);
  return {
    ticks: steps.filter((_, i) => i % every === 0),
    share: (amount) => Math.max(0, (position(amount) - start) / (end - start)),
  };
}

/** Of these steps the fewest that begin at or below `least` and end at or above `most`, two at least. */
function enclosing(steps, least, most) {
  const first = steps.findLastIndex((step) => step <= least);
  const last = steps.findIndex((step) => step >= most);
  return steps.slice(first, Math.max(first + 1, last) + 1);
}

/** 1, 2 or 5 times a power of ten, so that two to five steps reach the end. */
function niceStep(most) {
  let power = 1n;
  while (power * 50n < most) power *= 10n;
  return [power, power * 2n, power * 5n, power * 10n].find((step) => step * 5n >= most);
}

function position(amount) {
  return Math.log10(Number(amount));
}
