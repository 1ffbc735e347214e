// Answers wait here, in the browser's own storage, until the server says that it has them: sent one at a time, in order, again and again.
// Each carries a number of its own, so that one that arrives twice counts once.
const PAUSES = [500, 1000, 2000, 4000];

const memory = new Map();
const storage = {
  read(key) {
    try { return localStorage.getItem(key) ?? "[]"; } catch { return memory.get(key) ?? "[]"; }
  },
  write(key, text) {
    try { localStorage.setItem(key, text); } catch { memory.set(key, text); }
  },
};

function uuid() {
  const bytes = crypto.getRandomValues(new Uint8Array(16)); // randomUUID is missing where the page comes over plain http
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

export class Outbox {
  // path: where to post; key: whose answers they are; told(state): after each acknowledged answer; changed(waiting, problem): what to show.
  constructor(path, key, told, changed) {
    Object.assign(this, { path, key: `arena:${key}`, told, changed, failures: 0, busy: false, stopped: false });
    addEventListener("online", () => this.wake?.());
    this.send();
  }

  waiting() {
    return JSON.parse(storage.read(this.key));
  }

  add(answer) {
    storage.write(this.key, JSON.stringify([...this.waiting(), { request: uuid(), ...answer }]));
    this.show();
    this.send();
  }

  drop(request) {
    storage.write(this.key, JSON.stringify(this.waiting().filter((answer) => answer.request !== request)));
  }

  show(problem = "") {
    this.changed(this.waiting().length, problem || (this.failures ? "network" : ""));
  }

  async send() {
    if (this.busy || this.stopped) return;
    this.busy = true;
    for (let answer; (answer = this.waiting()[0]) && !this.stopped; ) await this.post(answer);
    this.busy = false;
  }

  async post(answer) {
    try {
      const response = await fetch(this.path, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify(answer),
        signal: AbortSignal.timeout(10000),
      });
      if (response.status >= 500) throw new Error("the server is in trouble");
      this.failures = 0;
      if (response.ok) return this.accepted(answer, await response.json());
      this.refused(answer, response.status);
    } catch {
      this.failures += 1;
      this.show();
      await this.pause(PAUSES[Math.min(this.failures, PAUSES.length) - 1]);
    }
  }

  accepted(answer, state) {
    this.drop(answer.request);
    this.show();
    this.told(state);
  }

  refused(answer, status) {
    if (status === 401 || status === 403) this.stopped = true; // kept until the own link is opened again
    else this.drop(answer.request);
    this.show(this.stopped ? "session" : "refused");
  }

  pause(time) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, time);
      this.wake = () => { clearTimeout(timer); resolve(); };
    });
  }
}
