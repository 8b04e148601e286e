/**
 * A text area with a ghost: text that may be written at the cursor. Behind the text area, whose own letters cannot be
 * seen, lies a mirror that shows the same text with the ghost in it.
 */

import { element } from "./dom.js";
import { highlighted } from "./highlight.js";

const INDENT = "    ";
/** A word with what stands before it, or a run of signs. */
const WORD = /^\s*(?:[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]+|$)/u;

export class Editor {
  ghost = "";
  _leaving = false;
  _composing = false;

  /**
   * `onType(kept)`: the text has changed; `kept` says whether the ghost, and more of it, still holds.
   * `onLeave()`: the cursor went elsewhere, or the reader does not want the ghost. `onGhost(is)`: whether there is one.
   */
  constructor(area, mirror, { onType, onLeave, onGhost }) {
    Object.assign(this, { _area: area, _mirror: mirror, _onType: onType, _onLeave: onLeave, _onGhost: onGhost });
    area.addEventListener("keydown", (event) => this._press(event));
    area.addEventListener("input", (event) => this._typed(event));
    area.addEventListener("compositionend", () => {
      this._composing = false;
      this._onType(false);
    });
    area.addEventListener("scroll", () => this._follow());
    area.addEventListener("blur", () => (this._leaving = false));
    document.addEventListener("selectionchange", () => this._moved());
    new ResizeObserver(() => this._follow()).observe(area);
    this._remember();
    this._draw();
  }

  /** The text in front of the cursor, and behind it. */
  get before() {
    return this._area.value.slice(0, this._area.selectionEnd);
  }

  get after() {
    return this._area.value.slice(this._area.selectionEnd);
  }

  /** Whether something can be written at the cursor: nothing is selected, and no input method is at work. */
  get ready() {
    return this._area.selectionStart === this._area.selectionEnd && !this._composing;
  }

  /** Put a whole text in, with the cursor at a place. */
  set(text, at) {
    this.ghost = "";
    this._area.value = text;
    this._area.setSelectionRange(at, at);
    this._remember();
    this._draw();
    const above = text.slice(0, at).split("\n").length - 1;
    this._area.scrollTo(0, Math.max(0, above * this._lineHeight - this._area.clientHeight / 2));
  }

  /** Show a ghost at the cursor; "" for none. */
  suggest(ghost) {
    this.ghost = ghost;
    this._draw();
  }

  /** Write the ghost. */
  accept() {
    this._write(this.ghost);
  }

  focus() {
    this._area.focus();
  }

  _press(event) {
    const leaving = this._leaving;
    if (!["Shift", "Control", "Alt", "Meta", "Tab"].includes(event.key)) this._leaving = false;
    if (event.key === "Escape") {
      this._leaving = true;
      this.suggest("");
      this._onLeave();
    } else if (event.key === "Tab" && !event.shiftKey && !leaving) {
      event.preventDefault();
      this._write(this.ghost || INDENT);
    } else if (event.key === "Enter" && !event.isComposing && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      this._write(`\n${indentation(this.before)}`);
    } else if (event.key === "ArrowRight" && (event.ctrlKey || event.altKey) && this.ghost) {
      event.preventDefault();
      this._write(WORD.exec(this.ghost)[0]);
    }
  }

  /** As if typed: the one way that leaves the browser's own undo whole. */
  _write(text) {
    document.execCommand("insertText", false, text);
  }

  _typed(event) {
    const { value, selectionEnd: at } = this._area;
    const { text, start, end } = this._known;
    const written = value.slice(start, at);
    const only = start === end && value.length === text.length + written.length && value.endsWith(text.slice(start));
    this._composing = event.isComposing;
    const kept = !event.isComposing && only && this.ghost !== "" && this.ghost.startsWith(written);
    this.ghost = kept ? this.ghost.slice(written.length) : "";
    this._remember();
    this._draw();
    this._onType(kept);
  }

  /** The cursor went elsewhere by itself. */
  _moved() {
    const { text, start, end } = this._known;
    const { value, selectionStart, selectionEnd } = this._area;
    if (value !== text || (selectionStart === start && selectionEnd === end)) return;
    this._remember();
    if (this.ghost) this.suggest("");
    this._onLeave();
  }

  _remember() {
    this._known = { text: this._area.value, start: this._area.selectionStart, end: this._area.selectionEnd };
  }

  _draw() {
    const { before, after, ghost } = this;
    // Whatever its first word is, the ghost may begin in the line below; from the cursor on, its lines begin where the
    // view does (code.css).
    const span = element("span", { class: "ghost" }, element("wbr"), ghost);
    const cursor = element("span", { class: "cursor" });
    const shown = ghost ? [...highlighted(before), cursor, span, ...highlighted(after)] : highlighted(before + after);
    this._mirror.replaceChildren(...shown, "\n");
    // Room to scroll down to what a ghost of several lines has pushed down, those included into which it was broken.
    const lines = Math.ceil(span.offsetHeight / this._lineHeight) - 1;
    this._area.style.paddingBottom = lines > 0 ? `${(lines + 1) * this._lineHeight}px` : "";
    this._follow();
    this._onGhost(ghost !== "");
  }

  get _lineHeight() {
    return parseFloat(getComputedStyle(this._area).lineHeight);
  }

  _follow() {
    this._mirror.style.setProperty("--scrolled", `${this._area.scrollLeft}px`);
    this._mirror.scrollTo(0, this._area.scrollTop);
  }
}

/** Of a line that follows this text: that of its last one, and a step more where that opens a block. */
function indentation(before) {
  const line = before.slice(before.lastIndexOf("\n") + 1);
  const [own] = /^[ \t]*/.exec(line);
  if (!/[:{[(]\s*$/.test(line)) return own;
  return own + (own.startsWith("\t") ? "\t" : INDENT);
}
