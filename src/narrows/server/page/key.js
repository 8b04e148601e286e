/** The reader's key: from the address (#key=…) or from the form, kept in this browser. */

import { byId } from "./dom.js";
import { remember, remembered } from "./storage.js";

const MISSING = "This server answers to keys only. Enter yours to begin.";

/**
 * Let a server have the key; `onKey()` is called whenever there is another one. Returns `complain(problem)`, which asks
 * for one that is let in.
 */
export function startKey(server, onKey) {
  const form = byId("key-form");
  const field = byId("key");
  const button = byId("key-button");
  const message = byId("key-message");

  function open(why) {
    message.textContent = why;
    form.hidden = false;
    button.setAttribute("aria-expanded", "true");
  }

  function close() {
    if (form.contains(document.activeElement)) button.focus();
    form.hidden = true;
    field.value = "";
    message.textContent = "";
    button.setAttribute("aria-expanded", "false");
  }

  function use(key) {
    server.key = key;
    remember("key", key);
    button.textContent = key ? `Key …${key.slice(-4)}` : "Key";
    byId("key-forget").hidden = !key;
    if (key) close();
    else open(MISSING);
    onKey();
  }

  function fromAddress() {
    const given = new URLSearchParams(location.hash.slice(1)).get("key");
    if (given !== null) history.replaceState(null, "", location.pathname + location.search);
    return given;
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const key = field.value.trim();
    if (/^[!-~]+$/.test(key)) use(key);
    else open("A key has letters, digits and underscores alone; copy it again.");
  });
  byId("key-forget").addEventListener("click", () => {
    use(null);
    field.focus();
  });
  button.addEventListener("click", () => {
    if (!form.hidden && server.key) return close();
    open(server.key ? "" : MISSING);
    field.focus();
  });
  addEventListener("hashchange", () => {
    const given = fromAddress();
    if (given) use(given);
  });
  // After all views are there, so that they hear of it.
  queueMicrotask(() => use(fromAddress() || remembered("key")));

  return (problem) => {
    open(server.key ? problem.message : MISSING);
    if (!server.key) field.focus();
  };
}
