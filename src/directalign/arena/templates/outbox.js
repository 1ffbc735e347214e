// Answers wait here, in the browser's own storage, until the server says that it has them: sent one at a time, in order, again and again.
// Each carries a number of its own, so that one that arrives twice counts once, and has an entry of its own, so that two tabs of one
// annotator never write over each other's; both may send it.
const PAUSES = [500, 1000, 2000, 4000];
const REFUSED = [401, 403, 422];

const memory = new Map(); // for what the storage does not take
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
    try { localStorage.removeItem(key); } catch { /* it was never there */ }
  },
};

export function uuid() {
  const bytes = crypto.getRandomValues(new Uint8Array(16)); // randomUUID is missing where the page comes over plain http
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

export class Outbox {
  // path: where to post; annotator: whose answers they are; key: the same, for one arena alone; told(state): after each acknowledged answer, null if by another tab; changed(waiting, problem): what to show.
  constructor(path, annotator, key, told, changed) {
    Object.assign(this, { path, annotator, key: `arena:${key}:`, told, changed, failures: 0, busy: false, stopped: false });
    addEventListener("online", () => this.wake?.());
    this.send();
  }

  waiting() {
    const keys = storage.keys().filter((key) => key.startsWith(this.key)).sort();
    return keys.map((key) => ({ key, text: storage.read(key) })).filter(({ text }) => text).map(({ key, text }) => ({ key, ...JSON.parse(text) }));
  }

  add(answer) {
    const last = this.waiting().at(-1)?.key.slice(this.key.length).split("-")[0] ?? 0;
    const place = Math.max(Date.now(), Number(last) + 1, (this.place ?? 0) + 1); // after all others, whatever the clock says
    const request = uuid();
    this.place = place;
    storage.write(`${this.key}${String(place).padStart(16, "0")}-${request}`, JSON.stringify({ request, ...answer }));
    this.show();
    this.send();
  }

  show(problem = "") {
    this.changed(this.waiting().length, problem || (this.failures ? "network" : ""));
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
      if (!response.ok && !REFUSED.includes(response.status)) throw new Error("the server, or what answers in its place, is in trouble");
      const said = response.ok ? await response.json() : null;
      this.failures = 0;
      if (said) this.accepted(key, said);
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
    this.told(state);
  }

  overtaken() { // another tab has sent it meanwhile, and was told the state
    this.failures = 0;
    this.show();
    this.told(null);
  }

  refused(key, status) {
    if (status === 422) storage.drop(key); // read, and no answer to anything asked here
    else this.stopped = true; // kept until the own link is opened again
    this.show(this.stopped ? "session" : "refused");
  }

  pause(time) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, time);
      this.wake = () => { clearTimeout(timer); resolve(); };
    });
  }
}
