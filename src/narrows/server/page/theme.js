/** Light or dark: as the system has it, until the reader says otherwise. */

import { remember, remembered } from "./storage.js";

const dark = matchMedia("(prefers-color-scheme: dark)");

/** Let a button change the theme. */
export function startTheme(button) {
  let chosen = remembered("theme");

  function show() {
    const now = chosen ?? (dark.matches ? "dark" : "light");
    const other = now === "dark" ? "light" : "dark";
    document.documentElement.dataset.theme = now;
    button.textContent = now === "dark" ? "Light" : "Dark";
    button.setAttribute("aria-label", `Change to the ${other} theme`);
  }

  button.addEventListener("click", () => {
    chosen = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    remember("theme", chosen);
    show();
  });
  dark.addEventListener("change", show);
  show();
}
