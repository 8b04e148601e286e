/** The Code tab: an editor whose text the model goes on with. */

import { byId, fillSelect } from "./dom.js";
import { Context } from "./context.js";
import { Editor } from "./editor.js";
import { Clock } from "./figures.js";
import { Estimate, fitted } from "./fit.js";
import { Progress } from "./progress.js";
import { SAMPLE } from "./sample.js";
import { remember, remembered } from "./storage.js";

const PAUSE = 250; // milliseconds without a key, until the model is asked
const ANSWER = 64; // tokens
const READS = 10_000; // milliseconds for which a screen reader's user is not told again how to accept

/** Returns `setModels(models)`, for what GET /v1/models tells. */
export function startCode(server, figures) {
  const model = byId("code-model");
  const windowSize = byId("code-window");
  const typing = byId("code-typing");
  const progress = new Progress(byId("code-status"), byId("code-reading"));
  const notice = byId("code-notice");
  const live = byId("code-live");
  const estimate = new Estimate();
  let models = [];
  let request = null; // the AbortController of what is under way
  let timer = null;
  let quietUntil = 0; // performance.now(), after a refusal
  let explained = -READS;

  const editor = new Editor(byId("editor"), byId("mirror"), {
    onType(kept) {
      if (kept) return;
      cancel();
      if (typing.checked && performance.now() > quietUntil) timer = setTimeout(complete, PAUSE);
    },
    onLeave: cancel,
    onGhost: (is) => (byId("code-accept").hidden = !is),
  });
  const context = new Context(estimate, {
    onChange() {
      cancel();
      showRead();
    },
    onOpen(file) {
      context.remove(file);
      edit(file.text, file.text.length);
      progress.say(`${file.path} is in the editor, and no longer read beside it.`);
    },
  });

  function cancel() {
    clearTimeout(timer);
    request?.abort();
    request = null;
    live.textContent = "";
    if (editor.ghost) editor.suggest("");
    progress.say("");
  }

  function edit(text, at) {
    cancel();
    editor.set(text, at);
    editor.focus();
  }

  const fit = () =>
    fitted(context.files, editor.before, editor.after, Number(windowSize.value), ANSWER, estimate);

  function showRead() {
    if (windowSize.value) context.showRead(fit().read, Number(windowSize.value));
  }

  /** Ask for what belongs at the cursor, and show it as it comes. */
  async function complete() {
    cancel();
    if (!editor.ready || !model.value || !server.key) return;
    const { context: files, before, after } = fit();
    if (!before && !after) return;
    showRead();
    const own = (request = new AbortController());
    const clock = new Clock();
    const asked = {
      model: model.value,
      prompt: before,
      suffix: after || null,
      context: files.length ? files : null,
      max_tokens: ANSWER,
      temperature: 0,
      stop: endOf(after),
      stream: true,
      stream_options: { include_usage: true },
    };
    notice.textContent = "";
    progress.say("Asking…");
    let usage = null;
    try {
      const heard = (comment) => request === own && progress.heard(comment);
      for await (const told of server.stream("/v1/completions", asked, own.signal, heard)) {
        usage = told.usage ?? usage;
        const piece = told.choices[0]?.text;
        if (!piece) continue;
        clock.piece();
        editor.suggest(editor.ghost + piece);
        progress.say("Writing…");
      }
    } catch (problem) {
      if (request !== own) return;
      if (problem.code !== "context_length_exceeded" || !estimate.lower()) return refused(problem);
      return complete();
    }
    if (request !== own) return;
    request = null;
    figures.add(asked.model, usage, clock);
    estimate.learn([...files, before, after], usage.prompt_tokens);
    showRead();
    told();
  }

  function told() {
    const ghost = editor.ghost;
    progress.say(ghost.trim() ? "Tab accepts." : "Nothing to add here.");
    if (!ghost.trim()) return editor.suggest("");
    const how = performance.now() - explained > READS ? " Tab accepts it, Escape dismisses it." : "";
    if (how) explained = performance.now();
    live.textContent = `Suggestion: ${ghost}.${how}`;
  }

  function refused(problem) {
    request = null;
    progress.say("");
    if (problem.name === "AbortError") return;
    if (editor.ghost) editor.suggest("");
    if (problem.status !== 401) notice.textContent = problem.message;
    // Over a rate, what is typed asks again after the seconds that were named; over the budget, only who wants to does.
    if (problem.status === 429) quietUntil = performance.now() + (problem.seconds ?? 60) * 1000;
    if (problem.status === 402 && typing.checked) {
      typing.checked = false;
      notice.textContent += " Completing as you type is off now.";
    }
  }

  byId("editor").addEventListener("keydown", (event) => {
    if (event.ctrlKey && event.code === "Space") {
      event.preventDefault();
      complete();
    }
  });
  byId("code-complete").addEventListener("click", () => {
    editor.focus();
    complete();
  });
  byId("code-accept").addEventListener("click", () => {
    editor.focus();
    editor.accept();
  });
  byId("code-sample").addEventListener("click", () => {
    edit(SAMPLE.text, SAMPLE.at);
    complete();
  });
  typing.checked = remembered("typing") !== "off";
  typing.addEventListener("change", () => remember("typing", typing.checked ? null : "off"));
  model.addEventListener("change", () => setWindows());
  windowSize.addEventListener("change", () => {
    cancel();
    showRead();
  });
  editor.set(SAMPLE.text, SAMPLE.at);
  let visited = false;

  /** Contexts from what a model was trained for, four times as much each, up to what it holds. */
  function setWindows() {
    cancel();
    const chosen = models.find((one) => one.id === model.value);
    if (!chosen) return fillSelect(windowSize, []);
    const most = chosen.context_length;
    const trained = Math.min(chosen.trained_context ?? most, most);
    const sizes = [];
    for (let size = trained; size < most; size *= 4) sizes.push(size);
    sizes.push(most);
    fillSelect(windowSize, sizes.map((size) => [size, `${size.toLocaleString("en")} tokens`]));
    showRead();
  }

  return function setModels(given) {
    models = given;
    fillSelect(model, models.map(({ id }) => [id, id]));
    for (const button of [byId("code-complete"), byId("code-sample")]) {
      button.disabled = !models.length;
      button.title = models.length ? "" : "Enter a key first.";
    }
    setWindows();
    if (!models.length) progress.say("Nothing can be asked without a key.");
    if (models.length && !visited) {
      visited = true;
      complete();
    }
  };
}

/** What ends a completion: the line's end where the line goes on, a blank line where one follows, else a larger gap. */
function endOf(after) {
  if (after.split("\n", 1)[0].trim()) return "\n";
  return /^[^\S\n]*\n[^\S\n]*\n/.test(after) ? "\n\n" : "\n\n\n";
}
