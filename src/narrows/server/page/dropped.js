/** Files that were dropped or chosen, read as texts in the order of their paths. */

const LARGEST = 1 << 20; // bytes; a larger file is data
const MOST = 2000;
const PASSED_OVER = /(?:^|\/)(?:\.[^/]*|__pycache__|node_modules|venv|target|dist|_build)(?=\/)|(?:^|\/)\.[^/]*$/;

/** Of what was dropped, all files, those in folders too: [path, File] each. Ask at once: it is gone after the event. */
export async function droppedFiles(transfer) {
  const items = [...transfer.items].filter((item) => item.kind === "file");
  const roots = items.map((item) => item.webkitGetAsEntry() ?? item.getAsFile());
  const found = [];
  for (const root of roots) {
    if (root instanceof File) found.push([root.name, root]);
    else await walk(root, found);
  }
  return found;
}

/** Of an <input type=file>, the same. */
export function chosenFiles(input) {
  return [...input.files].map((file) => [file.webkitRelativePath || file.name, file]);
}

/** The texts of files, {path, text, bytes} each, and how many were passed over: hidden, made, large, or no text. */
export async function readTexts(files) {
  const texts = [];
  const inOrder = [...files].sort(([one], [other]) => (one < other ? -1 : one > other ? 1 : 0));
  for (const [path, file] of inOrder.slice(0, MOST)) {
    const text = PASSED_OVER.test(path) || file.size > LARGEST ? null : await textOf(file);
    if (text) texts.push({ path, text, bytes: file.size });
  }
  return { texts, passedOver: files.length - texts.length };
}

async function walk(entry, found) {
  const path = entry.fullPath.replace(/^\//, "");
  if (PASSED_OVER.test(entry.isDirectory ? `${path}/` : path) || found.length >= MOST) return;
  if (entry.isFile) {
    found.push([path, await new Promise((resolve, reject) => entry.file(resolve, reject))]);
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    // It tells a part at a time.
    const entries = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!entries.length) return;
    for (const one of entries) await walk(one, found);
  }
}

async function textOf(file) {
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
    return text.includes("\0") ? null : text;
  } catch {
    return null;
  }
}
