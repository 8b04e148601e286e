/** Requests to this server: with the key, and with what goes wrong as a sentence. */

/** What a request failed with. `status`: of HTTP, 0 where no answer came; `seconds`: to wait before another try. */
export class Problem extends Error {
  constructor(message, { status = 0, code = null, seconds = null } = {}) {
    super(message);
    Object.assign(this, { status, code, seconds });
  }
}

/** The server as one key sees it. `onUnknownKey(problem)` is called whenever that is no longer let in. */
export class Server {
  key = null;

  constructor(onUnknownKey) {
    this.onUnknownKey = onUnknownKey;
  }

  /** The JSON at an address. */
  async get(path, signal = undefined) {
    return (await this._ask(path, { signal })).json();
  }

  /**
   * Ask for a stream of events, and hand out the JSON of each; `onComment(text)` gets what says only how far the server
   * is. A broken or aborted stream throws.
   */
  async *stream(path, body, signal, onComment) {
    const headers = { "content-type": "application/json" };
    const answer = await this._ask(path, { method: "POST", body: JSON.stringify(body), headers, signal });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let waiting = "";
    for (;;) {
      const { done, value } = await reader.read().catch(brokenOff);
      if (done) brokenOff();
      const events = (waiting + value).split("\n\n");
      waiting = events.pop();
      for (const event of events) {
        if (event.startsWith(":")) onComment(event);
        if (!event.startsWith("data: ")) continue;
        const data = event.slice("data: ".length);
        if (data === "[DONE]") return;
        const told = JSON.parse(data);
        if (told.error) throw new Problem(sentence(told.error.message));
        yield told;
      }
    }
  }

  /** See whether a key is let in, before it is used; throws the problem where it is not. */
  async tryKey(key) {
    await this._ask("/v1/models", {}, key);
  }

  async _ask(path, options, key = this.key) {
    const headers = { ...options.headers, authorization: `Bearer ${key ?? ""}` };
    let answer;
    try {
      answer = await fetch(path, { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem("The server does not answer; see whether it still runs, then try again.");
    }
    if (answer.ok) return answer;
    const problem = await refusal(answer);
    // Not where another one has been tried, or has come meanwhile.
    if (problem.status === 401 && key !== null && key === this.key) this.onUnknownKey(problem);
    throw problem;
  }
}

function brokenOff(error = null) {
  if (error?.name === "AbortError") throw error;
  throw new Problem("The answer broke off; ask again.");
}

async function refusal(answer) {
  let error = {};
  try {
    error = (await answer.json()).error;
  } catch {
    // something between answered, in words of its own
  }
  const seconds = Number(answer.headers.get("retry-after")) || null;
  const opening = {
    402: "This is more than the key's budget.",
    429: `Too much at once for this key; it may go on in ${seconds ?? 60} s.`,
  };
  const said = sentence(error?.message ?? `the server answered ${answer.status}; try again later.`);
  const message = [opening[answer.status], said].filter(Boolean).join(" ");
  return new Problem(message, { status: answer.status, code: error?.code, seconds });
}

function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
