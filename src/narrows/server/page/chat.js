/** The Chat tab: a conversation with a model that was trained for it. */

import { byId, element, fillSelect } from "./dom.js";
import { withFences } from "./fences.js";
import { Clock } from "./figures.js";
import { Progress } from "./progress.js";

/** Returns `setModels(models)`, for those of GET /v1/models that chat. */
export function startChat(server, figures) {
  const model = byId("chat-model");
  const field = byId("chat-text");
  const list = byId("chat-messages");
  const notice = byId("chat-notice");
  const send = byId("chat-send");
  const stop = byId("chat-stop");
  const live = byId("chat-live");
  const progress = new Progress(byId("chat-status"), byId("chat-reading"));
  let messages = [];
  let request = null;

  async function answer() {
    const own = (request = new AbortController());
    const asked = {
      model: model.value,
      messages,
      reasoning_effort: byId("chat-effort").value,
      stream: true,
      stream_options: { include_usage: true },
    };
    const reply = new Reply(list);
    const clock = new Clock();
    let usage = null;
    busy(true);
    progress.say("Asking…");
    try {
      const heard = (comment) => request === own && progress.heard(comment);
      for await (const told of server.stream("/v1/chat/completions", asked, own.signal, heard)) {
        usage = told.usage ?? usage;
        const delta = told.choices[0]?.delta ?? {};
        if (delta.content || delta.reasoning_content) {
          clock.piece();
          progress.say("Writing…");
        }
        reply.add(delta);
      }
      figures.add(asked.model, usage, clock);
      live.textContent = `Answer: ${reply.content}`;
    } catch (problem) {
      if (request !== own) return; // another conversation has begun
      if (problem.name === "AbortError") reply.stopped();
      else if (problem.status !== 401) notice.textContent = problem.message;
    }
    if (request !== own) return;
    request = null;
    busy(false);
    keep(reply);
  }

  /** What was answered is part of what is asked next; where nothing was, the question goes back into the field. */
  function keep(reply) {
    if (reply.content) {
      const said = { role: "assistant", content: reply.content };
      messages.push(reply.reasoning ? { ...said, reasoning_content: reply.reasoning } : said);
      return;
    }
    const question = messages.pop();
    if (!reply.reasoning) {
      list.lastElementChild.remove();
      list.lastElementChild.remove();
    }
    if (!field.value) field.value = question.content;
  }

  function busy(is) {
    stop.hidden = !is;
    send.disabled = is;
    if (!is) progress.say("");
    list.setAttribute("aria-busy", is);
    if (!is) field.focus();
  }

  byId("chat-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const content = field.value.trim();
    if (!content || request || !model.value) return;
    notice.textContent = "";
    field.value = "";
    messages.push({ role: "user", content });
    list.append(element("li", { class: "user" }, element("h3", {}, "You"), ...withFences(content)));
    answer();
  });
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    byId("chat-form").requestSubmit(send.disabled ? null : send);
  });
  stop.addEventListener("click", () => request?.abort());
  byId("chat-new").addEventListener("click", () => {
    request?.abort();
    request = null;
    messages = [];
    list.replaceChildren();
    notice.textContent = live.textContent = "";
    busy(false);
  });

  return function setModels(models) {
    fillSelect(model, models.map(({ id }) => [id, id]));
  };
}

/** A reply on its way into the list. */
class Reply {
  content = "";
  reasoning = "";
  _drawn = false;

  constructor(list) {
    this._reasoning = element("p");
    this._details = element("details", { open: "", hidden: "" }, element("summary", {}, "Reasoning"), this._reasoning);
    this._content = element("div", { class: "content" });
    this._item = element("li", { class: "assistant" }, element("h3", {}, "Answer"), this._details, this._content);
    list.append(this._item);
    this._item.scrollIntoView({ block: "nearest" });
  }

  add({ reasoning_content: reasoning, content }) {
    if (reasoning) {
      this.reasoning += reasoning;
      this._details.hidden = false;
    }
    if (content) {
      if (!this.content) this._details.open = false;
      this.content += content;
    }
    if (!(reasoning || content) || this._drawn) return;
    this._drawn = true; // once a frame, however many pieces come
    requestAnimationFrame(() => this._draw());
  }

  stopped() {
    this._item.append(element("p", { class: "hint" }, "Stopped."));
  }

  _draw() {
    this._drawn = false;
    const atEnd = innerHeight + scrollY > document.documentElement.scrollHeight - 80;
    this._reasoning.textContent = this.reasoning;
    this._content.replaceChildren(...withFences(this.content));
    if (atEnd) scrollTo(0, document.documentElement.scrollHeight);
  }
}
