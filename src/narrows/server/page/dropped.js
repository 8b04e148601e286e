/** Files that were dropped or chosen, read as texts in the order of their paths. */

const LARGEST = 1 << 20; // bytes; a larger file is data
const MOST = 2000;
const PASSED_OVER = /(?:^|\/)(?:\.[^/]*|__pycache__|node_modules|venv|target|dist|_build)(?=\/)|(?:^|\/)\.[^/]*$/;

/**
 * Of what was dropped, all files, those in folders too: [path, File] each, without the File what is passed over by its
 * name alone. Ask at once: it is gone after the event.
 */
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

/**
 * The texts of files, {path, text, bytes} each, and what was passed over: a Map of paths to why. A folder that is passed
 * over stands for all that is in it.
 */
export async function readTexts(files) {
  const texts = [];
  const passedOver = new Map();
  const inOrder = [...files].sort(([one], [other]) => (one < other ? -1 : one > other ? 1 : 0));
  for (const [path, file] of inOrder) {
    const found = PASSED_OVER.exec(path);
    if (found) {
      const end = found.index + found[0].length;
      const why = found[0].replace("/", "").startsWith(".") ? "hidden" : "made by a tool";
      passedOver.set(end < path.length ? path.slice(0, end + 1) : path, why);
    } else if (texts.length === MOST) passedOver.set(path, `behind the first ${MOST} files`);
    else if (file.size === 0) passedOver.set(path, "empty");
    else if (file.size > LARGEST) passedOver.set(path, "larger than a megabyte");
    else {
      const text = await textOf(file);
      if (text === null) passedOver.set(path, "not a text in UTF-8");
      else texts.push({ path, text, bytes: file.size });
    }
  }
  return { texts, passedOver };
}

async function walk(entry, found) {
  const path = entry.fullPath.replace(/^\//, "");
  if (found.length > MOST) return; // one more than are read, to say that there are more
  if (PASSED_OVER.test(`${path}/`)) {
    found.push([entry.isDirectory ? `${path}/` : path, null]);
    return;
  }
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
