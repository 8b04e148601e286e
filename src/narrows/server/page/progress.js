/** What is said of a request that is under way: a sentence, and how much of a long prompt is read. */

const PREFILL = /^: prefill (\d+) of (\d+) tokens$/;

/** A status line with a bar, which is there only while a prompt is read. */
export class Progress {
  constructor(line, bar) {
    Object.assign(this, { _line: line, _bar: bar });
  }

  /** A sentence, without the bar. */
  say(text) {
    this._bar.hidden = true;
    this._line.textContent = text;
  }

  /** A comment of the stream, by which the server says that it lives and how far it is. */
  heard(comment) {
    const prefill = PREFILL.exec(comment);
    if (prefill) {
      const [read, whole] = prefill.slice(1).map(Number);
      this.say(`Reading ${read.toLocaleString("en")} of ${whole.toLocaleString("en")} tokens`);
      Object.assign(this._bar, { max: whole, value: read, hidden: false });
    } else if (!this._bar.hidden) {
      this.say("All is read; the answer comes next…");
    }
  }
}
