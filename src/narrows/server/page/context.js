/** The files that are read before the code: a list, to which files are dropped and from which they are taken. */

import { byId, element } from "./dom.js";
import { chosenFiles, droppedFiles, readTexts } from "./dropped.js";

/** Of what was passed over, so many are told by name. */
const SHOWN = 100;

/** Files, the nearest to the code last. `onChange()`: the list is another one; `onOpen(file)`: one is to be edited. */
export class Context {
  files = [];
  _rows = []; // in the order of the files
  _passedOver = new Map();

  constructor(estimate, { onChange, onOpen }) {
    Object.assign(this, { _estimate: estimate, _onChange: onChange, _onOpen: onOpen });
    for (const kind of ["files", "folder"]) {
      const input = byId(`context-${kind}-input`);
      byId(`context-${kind}`).addEventListener("click", () => input.click());
      input.addEventListener("change", () => {
        this._add(chosenFiles(input));
        input.value = "";
      });
    }
    byId("context-clear").addEventListener("click", () => {
      this._set([], new Map());
      byId("context-files").focus();
    });
    this._takeDrops(document.body);
  }

  /**
   * Say of every file how much of it is read (what `fitted` told), in a context of so many tokens. Those that are left
   * out stand behind the others.
   */
  showRead(read, window) {
    const rows = this._rows;
    read.forEach(({ all, tokens }, i) => {
      const of = this._estimate.tokens(this.files[i].text);
      rows[i].classList.toggle("left-out", tokens === 0);
      rows[i].querySelector(".read").textContent =
        all ? `≈ ${count(of)} tokens` : tokens ? `≈ last ${count(tokens)} of ${count(of)} tokens` : "left out";
    });
    const short = read.filter(({ all }) => !all).length;
    byId("context-message").textContent = short
      ? `${short} of ${read.length} ${read.length === 1 ? "file does" : "files do"} not fit whole into ` +
        `${count(window)} tokens; those nearest to your code are read.`
      : "";
    const inOrder = [...rows.filter((_, i) => read[i].tokens), ...rows.filter((_, i) => !read[i].tokens)];
    const list = byId("context-list");
    // Only where there is another order: what is moved loses the focus.
    if (inOrder.some((row, i) => row !== list.children[i])) list.replaceChildren(...inOrder);
  }

  /** Take one from the list. */
  remove(file) {
    this._set(this.files.filter((one) => one !== file), this._passedOver);
  }

  _takeDrops(place) {
    place.addEventListener("dragover", (event) => {
      if (!event.dataTransfer.types.includes("Files")) return;
      event.preventDefault();
      place.classList.add("dropping");
    });
    place.addEventListener("dragleave", (event) => {
      if (!place.contains(event.relatedTarget)) place.classList.remove("dropping");
    });
    place.addEventListener("drop", async (event) => {
      place.classList.remove("dropping");
      if (!event.dataTransfer.types.includes("Files")) return;
      event.preventDefault();
      if (!byId("code").hidden) this._add(await droppedFiles(event.dataTransfer));
    });
  }

  /** What is new comes last, nearest to the code; what is there already is replaced where it stands. */
  async _add(files) {
    const { texts, passedOver } = await readTexts(files);
    const given = new Map(texts.map((file) => [file.path, file]));
    const known = this.files.map((file) => given.get(file.path) ?? file);
    const paths = new Set(known.map((file) => file.path));
    this._set([...known, ...texts.filter((file) => !paths.has(file.path))], passedOver);
  }

  /** `passedOver`: of what was added last, what is not in the list, and why. */
  _set(files, passedOver) {
    this.files = files;
    this._passedOver = passedOver;
    this._rows = files.map((file) => this._row(file));
    byId("context-empty").hidden = files.length > 0;
    byId("context-clear").hidden = files.length === 0;
    byId("context-list").replaceChildren(...this._rows);
    byId("context-message").textContent = "";
    this._showPassedOver();
    this._onChange();
  }

  _showPassedOver() {
    const place = byId("context-passed-over");
    place.hidden = this._passedOver.size === 0;
    if (place.hidden) return place.replaceChildren();
    const lines = [...this._passedOver].slice(0, SHOWN).map(([path, why]) =>
      element("li", {}, element("span", { class: "path", title: path }, path), element("span", { class: "why" }, why)));
    const more = this._passedOver.size - lines.length;
    if (more) lines.push(element("li", {}, `and ${count(more)} more`));
    place.replaceChildren(
      element("summary", {}, `${count(this._passedOver.size)} passed over`),
      element("ul", {}, ...lines),
    );
  }

  _row(file) {
    const remove = (event) => {
      const at = [...byId("context-list").children].indexOf(event.target.closest("li"));
      this.remove(file);
      const rows = byId("context-list").children;
      (rows[Math.min(at, rows.length - 1)]?.querySelector("button") ?? byId("context-files")).focus();
    };
    return element(
      "li",
      {},
      element("span", { class: "path", title: file.path }, file.path),
      element("span", { class: "read" }),
      element("span", { class: "size" }, size(file.bytes)),
      element("button", { type: "button", class: "quiet", "aria-label": `Edit ${file.path}`,
        click: () => this._onOpen(file) }, "Edit"),
      element("button", { type: "button", class: "quiet", "aria-label": `Remove ${file.path}`, click: remove }, "×"),
    );
  }
}

function count(number) {
  return number.toLocaleString("en");
}

function size(bytes) {
  return bytes < 1024 ? `${bytes} B` : `${(bytes / 1024).toFixed(1)} KB`;
}
