/** What this browser remembers between visits; nothing, where it is not allowed to. */

export function remembered(name) {
  try {
    return localStorage.getItem(`narrows.${name}`);
  } catch {
    return null;
  }
}

/** Remember a text; null forgets it. */
export function remember(name, value) {
  try {
    if (value === null) localStorage.removeItem(`narrows.${name}`);
    else localStorage.setItem(`narrows.${name}`, value);
  } catch {
    // it holds until the page is closed
  }
}
