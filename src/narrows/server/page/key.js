/** The reader's key: from the address (#key=…) or from the form, kept in this browser. */

import { byId } from "./dom.js";
import { remember, remembered } from "./storage.js";

/** What keeps a key out of use: no answer, or that it is not known. Of all else the views tell. */
const UNUSABLE = [0, 401];
const MISSING = "This server answers to keys only. Enter yours to begin.";

/**
 * Let a server have the key; `onKey()` is called whenever there is another one, or none. Returns `complain(problem)`,
 * which says what is wrong, and `revoke(problem)`, which also takes the key out of use.
 */
export function startKey(server, onKey) {
  const form = byId("key-form");
  const field = byId("key");
  const button = byId("key-button");
  const message = byId("key-message");

  function open(why) {
    message.textContent = why;
    field.setAttribute("aria-invalid", Boolean(why && field.value));
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

  /** Put what cannot be used into the field, for the reader to mend. */
  function refuse(key, why) {
    field.value = key;
    open(why);
    field.focus();
  }

  /** What is wrong with a key; null where it is let in. */
  async function faultOf(key) {
    if (!/^[!-~]+$/.test(key)) return "A key has letters, digits and underscores alone; copy it again.";
    try {
      await server.tryKey(key);
    } catch (problem) {
      if (UNUSABLE.includes(problem.status)) return problem.message;
    }
    return null;
  }

  /** Use a key if it is let in; what was used before stays in use where it is not. */
  async function offer(key) {
    const fault = await faultOf(key);
    if (fault) refuse(key, fault);
    else use(key);
  }

  function fromAddress() {
    const given = new URLSearchParams(location.hash.slice(1)).get("key");
    if (given !== null) history.replaceState(null, "", location.pathname + location.search);
    return given;
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    offer(field.value.trim());
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
    if (given) offer(given);
  });
  // After all views are there, so that they hear of it.
  queueMicrotask(async () => {
    const given = fromAddress();
    const fault = given && (await faultOf(given));
    use(given && !fault ? given : remembered("key"));
    if (fault) refuse(given, fault);
  });

  return {
    complain: (problem) => open(problem.message),
    revoke(problem) {
      const key = server.key;
      use(null);
      refuse(key, problem.message);
    },
  };
}
