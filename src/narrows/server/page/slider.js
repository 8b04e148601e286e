/** A slider over values: the chosen one stands beside it in words, is what a screen reader says, and is remembered. */

import { byId } from "./dom.js";
import { remember, remembered } from "./storage.js";

/**
 * Make a range input one over these values, `first` chosen where this browser remembers none of them. `words(value)`
 * go into the output beside it too. Returns a function that tells the chosen value; `onMove()` hears of another.
 */
export function startSlider(id, { values, first, words }, onMove) {
  const input = byId(id);
  const before = values.findIndex((value) => String(value) === remembered(id));
  const chosen = () => values[input.valueAsNumber];

  function tell() {
    const text = words(chosen());
    byId(`${id}-words`).textContent = text;
    input.setAttribute("aria-valuetext", text);
  }

  Object.assign(input, { min: 0, max: values.length - 1, step: 1 });
  input.value = before === -1 ? values.indexOf(first) : before;
  input.addEventListener("input", () => {
    tell();
    remember(id, String(chosen()));
    onMove();
  });
  tell();
  return chosen;
}
