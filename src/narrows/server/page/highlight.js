/** Comments, strings, numbers and keywords, near enough for any language that looks like Python, C or JavaScript. */

import { element } from "./dom.js";

/** Beyond this many characters a text is shown plainly, so that typing stays quick. */
const MOST = 30_000;

const PIECES = new RegExp(
  [
    String.raw`(?<comment>#[^\n]*|\/\/[^\n]*|\/\*[^]*?\*\/)`,
    String.raw`(?<string>"""[^]*?(?:"""|$)|'''[^]*?(?:'''|$)|"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?)`,
    String.raw`(?<digits>\b\d[\w.]*)`,
    String.raw`(?<keyword>\b(?:and|as|assert|async|await|break|case|catch|class|const|continue|def|del|elif|else|enum|` +
      String.raw`except|export|False|finally|fn|for|from|func|function|global|if|impl|import|in|interface|is|lambda|let|` +
      String.raw`match|new|None|nonlocal|not|null|or|pass|pub|raise|return|self|static|struct|switch|this|throw|True|` +
      String.raw`true|false|try|type|use|var|void|while|with|yield)\b)`,
    String.raw`(?<called>\b[A-Za-z_]\w*(?=\())`,
  ].join("|"),
  "g",
);

/** A text as spans and texts. */
export function highlighted(text) {
  if (text.length > MOST) return [text];
  const parts = [];
  let end = 0;
  for (const found of text.matchAll(PIECES)) {
    const kind = Object.keys(found.groups).find((name) => found.groups[name] !== undefined);
    parts.push(text.slice(end, found.index), element("span", { class: kind }, found[0]));
    end = found.index + found[0].length;
  }
  return [...parts, text.slice(end)];
}
