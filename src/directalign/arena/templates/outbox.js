// Stores answers in localStorage until the server acknowledges them; sends one at a time, in order, with retries.
// Each has a request id, so that a repeated one counts once, and its own storage key, so that two tabs of one
// annotator do not overwrite each other.
const PAUSES = [500, 1000, 2000, 4000];
const REFUSED = [401, 403, 409, 422];

const memory = new Map(); // fallback when localStorage is not available
const storage = {
  keys() {
    try { return [...Object.keys(localStorage), ...memory.keys()]; } catch { return [...memory.keys()]; }
  },
  read(key) {
    try { return memory.get(key) ?? localStorage.getItem(key); } catch { return null; }
  },
  write(key, text) {
    try { localStorage.setItem(key, text); } catch { memory.set(key, text); }
  },
  drop(key) {
    memory.delete(key);
    try { localStorage.removeItem(key); } catch { /* not in localStorage */ }
  },
};

export function uuid() {
  const bytes = crypto.getRandomValues(new Uint8Array(16)); // randomUUID is missing where the page comes over plain http
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

export class Outbox {
  // path: URL to post to; annotator: their number; key: unique per annotator and arena;
  // onState(state): called after each acknowledged answer (null if another tab sent it); onStatus(waiting, problem): status.
  constructor(path, annotator, key, onState, onStatus) {
    Object.assign(this, { path, annotator, key: `arena:${key}:`, onState, onStatus, failures: 0, busy: false, stopped: false });
    addEventListener("online", () => this.wake?.());
    this.send();
  }

  waiting() {
    const keys = storage.keys().filter((key) => key.startsWith(this.key)).sort();
    return keys.map((key) => ({ key, text: storage.read(key) })).filter(({ text }) => text).map(({ key, text }) => ({ key, ...JSON.parse(text) }));
  }

  add(answer) {
    const last = this.waiting().at(-1)?.key.slice(this.key.length).split("-")[0] ?? 0;
    const place = Math.max(Date.now(), Number(last) + 1, (this.place ?? 0) + 1); // after all others, even if the clock was set back
    const request = uuid();
    this.place = place;
    storage.write(`${this.key}${String(place).padStart(16, "0")}-${request}`, JSON.stringify({ request, ...answer }));
    this.show();
    this.send();
  }

  show(problem = "") {
    this.onStatus(this.waiting().length, problem || (this.failures ? "network" : ""));
  }

  async send() {
    if (this.busy || this.stopped) return;
    this.busy = true;
    for (let first; (first = this.waiting()[0]) && !this.stopped; ) await this.post(first);
    this.busy = false;
  }

  async post({ key, ...answer }) {
    try {
      const response = await fetch(this.path, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ annotator: this.annotator, ...answer }),
        signal: AbortSignal.timeout(10000),
      });
      if (!response.ok && !REFUSED.includes(response.status)) throw new Error(`status ${response.status}`);
      const state = response.ok ? await response.json() : null;
      this.failures = 0;
      if (state) this.accepted(key, state);
      else this.refused(key, response.status);
    } catch {
      this.failures += 1;
      this.show();
      await this.pause(PAUSES[Math.min(this.failures, PAUSES.length) - 1]);
      if (!storage.read(key)) this.overtaken();
    }
  }

  accepted(key, state) {
    storage.drop(key);
    this.show();
    this.onState(state);
  }

  overtaken() { // another tab has sent it
    this.failures = 0;
    this.show();
    this.onState(null);
  }

  refused(key, status) {
    if (status === 409 || status === 422) storage.drop(key); // the server will never accept it
    else this.stopped = true; // stored until the personal link is opened again
    this.show(this.stopped ? "session" : "refused");
  }

  pause(time) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, time);
      this.wake = () => { clearTimeout(timer); resolve(); };
    });
  }
}
