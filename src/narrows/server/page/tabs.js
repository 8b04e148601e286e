/** Tabs in the ARIA pattern: arrow keys go from one to the next, Tab goes into what the chosen one shows. */

import { element } from "./dom.js";

/**
 * Make tabs of these sections; each is named by its data-tab. `onShow(section)` is called for the one that is shown.
 * Returns `setShown(section, whether)`, which takes a tab out of the list or puts it back.
 */
export function startTabs(list, sections, onShow) {
  const tabs = sections.map((section) => {
    const tab = element(
      "button",
      { type: "button", role: "tab", id: `tab-${section.id}`, "aria-controls": section.id },
      section.dataset.tab,
    );
    tab.addEventListener("click", () => choose(tab));
    tab.addEventListener("keydown", (event) => move(event, tab));
    section.setAttribute("role", "tabpanel");
    section.setAttribute("aria-labelledby", tab.id);
    return tab;
  });
  list.append(...tabs);

  function choose(chosen) {
    tabs.forEach((tab, i) => {
      const is = tab === chosen;
      tab.setAttribute("aria-selected", is);
      tab.tabIndex = is ? 0 : -1;
      sections[i].hidden = !is;
    });
    onShow(sections[tabs.indexOf(chosen)]);
  }

  function move(event, from) {
    const there = tabs.filter((tab) => !tab.hidden);
    const at = there.indexOf(from);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1 + there.length, Home: 0, End: there.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const tab = there[to % there.length];
    choose(tab);
    tab.focus();
  }

  choose(tabs[0]);

  return function setShown(section, whether) {
    const tab = tabs[sections.indexOf(section)];
    tab.hidden = !whether;
    if (!whether && tab.getAttribute("aria-selected") === "true") choose(tabs.find((one) => !one.hidden));
  };
}
