/** A reply's text as elements: paragraphs as they are, and what stands between code fences as code. */

import { element } from "./dom.js";

/** A fence that is still open goes on to the end. */
export function withFences(text) {
  return text.split(/^```([^\n`]*)\n?/m).reduce((parts, piece, i) => {
    // Pieces are text, a fence's word, code, a fence's word, text, …
    if (i % 2) return parts;
    const isCode = i % 4 === 2;
    const shown = isCode ? piece.replace(/\n$/, "") : piece.trim();
    if (shown) parts.push(isCode ? element("pre", { tabindex: 0 }, element("code", {}, shown)) : element("p", {}, shown));
    return parts;
  }, []);
}
