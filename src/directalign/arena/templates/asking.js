// Shared by both modes: task queue, progress, save status, enlarged image, help.
import { Outbox } from "/static/outbox.js";

export const $ = (id) => document.getElementById(id);
const SMALL = 200; // images smaller than this are displayed without interpolation
const LARGEST = 8; // largest magnification of small images

const MESSAGES = {
  missing: (_, prompt) => `Skipped, an image is missing: ${prompt.slice(0, 40)}`,
  network: (waiting) => `Not sent: ${waiting} stored here, retrying`,
  session: (waiting) => `${waiting} stored here: open your personal link again`,
  refused: () => "An answer was rejected: reload the page",
};

export class Asking {
  // kind: "vote" or "rating"; render(task): shows a task whose images are loaded.
  constructor(kind, render) {
    Object.assign(this, { kind, render, line: [], past: [], current: null, images: new Map(), openUntil: 0, ready: false });
    for (const id of ["back", "end-back"]) $(id).addEventListener("click", (event) => event.detail < 2 && this.back());
    this.connectDialogs();
    this.start();
  }

  async start() {
    for (let pause = 500; ; pause = Math.min(4000, 2 * pause)) {
      try {
        const response = await fetch("/api/state", { signal: AbortSignal.timeout(10000) });
        if (response.ok) return this.open(await response.json());
        if (response.status < 500) return this.saved(0, "session");
      } catch { this.saved(0, "network"); }
      await new Promise((resolve) => setTimeout(resolve, pause));
    }
  }

  open(state) {
    $("me").textContent = state.name;
    $("link").value = `${location.origin}/me/${state.link}`;
    const number = Number(state.link.split(".")[0]);
    this.outbox = new Outbox(`/api/${this.kind}`, number, `${number}:${state.link.slice(-8)}`, (next) => this.take(next), (...args) => this.saved(...args));
    this.done = state.done;
    this.saved(this.outbox.waiting().length, "");
    if (!this.outbox.waiting().length) this.take(state); // else the last response carries the state
  }

  take(state) {
    if (!state) return this.current || location.reload();
    const known = new Set([this.current, ...this.line, ...this.past, ...this.outbox.waiting()].map((task) => task?.task));
    this.line.push(...state.next.filter((task) => !known.has(task.task)));
    this.total = state.total;
    if (!this.outbox.waiting().length) {
      this.done = state.done;
      if (!this.past.length && state.last && state.last.task !== this.current?.task) this.past = [state.last];
    }
    for (const task of this.line) this.preload(task);
    if (!this.current) this.forward();
    this.progress();
  }

  preload(task) {
    for (const token of task.images) {
      if (this.images.has(token)) continue;
      const image = new Image();
      image.src = `/image/${token}`;
      this.images.set(token, image);
    }
  }

  forward() {
    if (this.current) this.past.push(this.current);
    this.show(this.line.shift() ?? null);
  }

  back() {
    const task = this.past.pop();
    if (!task) return null;
    if (this.current) this.line.unshift(this.current);
    this.show(task);
    return task;
  }

  async show(task) {
    this.current = task;
    this.ready = false;
    $("ask").dataset.state = "loading";
    $("ask").setAttribute("aria-busy", "true");
    $("end").hidden = true;
    $("ask").hidden = false;
    if (!task) return this.progress();
    this.preload(task);
    const complete = await this.loaded(task);
    if (this.current !== task) return;
    if (!complete) return this.skip(task);
    this.render(task);
    this.text(task.prompt);
    $("ask").dataset.state = "ready";
    $("ask").dataset.task = task.task;
    $("ask").classList.toggle("pixels", Math.max(task.width, task.height) < SMALL);
    $("ask").style.setProperty("--ratio", task.width / task.height);
    $("ask").style.setProperty("--most", `${Math.max(task.width, task.height) < SMALL ? LARGEST * task.width : 860}px`);
    $("ask").setAttribute("aria-busy", "false");
    this.ready = true;
    this.openUntil = performance.now() + 150; // ignore input meant for the previous task
    this.progress();
  }

  text(prompt) { // four lines of a long prompt, and a button for the rest
    const box = $("prompt").parentElement;
    $("prompt").textContent = prompt;
    box.classList.remove("whole");
    box.classList.toggle("long", $("prompt").scrollHeight > $("prompt").clientHeight + 2);
    $("more").textContent = "Show the whole prompt";
  }

  async skip(task) { // the server gives out no more tasks with the missing image
    this.skipped = task.prompt;
    this.current = null;
    try { this.take(await (await fetch("/api/state", { signal: AbortSignal.timeout(10000) })).json()); } catch { /* the next answer brings the state */ }
    if (!this.current) this.forward();
    this.outbox.show();
  }

  async loaded(task) { // false if an image is missing
    for (const token of task.images) {
      for (let pause = 500; ; pause = Math.min(4000, 2 * pause)) {
        try { await this.images.get(token).decode(); break; } catch {
          const status = await fetch(`/image/${token}`).then((response) => response.status, () => 0);
          if (status === 503) return false;
          this.saved(this.outbox.waiting().length, "network");
          await new Promise((resolve) => setTimeout(resolve, pause));
          this.images.delete(token);
          this.preload(task);
        }
      }
    }
    this.outbox.show();
    return true;
  }

  takesInput() {
    return this.ready && performance.now() > this.openUntil && !$("zoom").open && !$("help").open;
  }

  progress() {
    const ended = !this.current && !this.line.length && this.total !== undefined && this.done >= this.total && !this.outbox.waiting().length;
    $("ask").hidden = ended;
    $("back").disabled = !this.past.length;
    if (ended && $("end").hidden) { $("end").hidden = false; $("end-title").focus(); }
    $("done").textContent = this.done;
    $("total").textContent = this.total ?? "";
    const track = $("track");
    track.setAttribute("aria-valuenow", this.done);
    track.setAttribute("aria-valuemax", this.total ?? 0);
    track.firstElementChild.style.width = `${(100 * this.done) / (this.total || 1)}%`;
  }

  saved(waiting, problem) {
    if (!problem && this.skipped) problem = "missing";
    const text = problem ? MESSAGES[problem](waiting === 1 ? "1 answer" : `${waiting} answers`, this.skipped) : waiting ? "Saving" : "All saved";
    $("saved").dataset.state = problem ? "problem" : waiting ? "busy" : "ok";
    if ($("saved-text").textContent !== text) $("saved-text").textContent = text;
  }

  zoom(index) {
    if (!this.ready) return;
    const count = this.current.images.length;
    this.zoomed = (index + count) % count;
    $("zoom-image").src = `/image/${this.current.images[this.zoomed]}`;
    $("zoom-image").classList.toggle("pixels", $("ask").classList.contains("pixels"));
    $("zoom").style.setProperty("--ratio", this.current.width / this.current.height);
    $("zoom-image").alt = $("zoom-text").textContent = count === 2 ? ["Left image", "Right image"][this.zoomed] : `Image ${this.zoomed + 1} of ${count}`;
    if (!$("zoom").open) $("zoom").showModal();
  }

  connectDialogs() {
    $("zoom-close").addEventListener("click", () => $("zoom").close());
    $("zoom-other").addEventListener("click", () => this.zoom(this.zoomed + 1));
    $("zoom").addEventListener("click", (event) => { if ([$("zoom"), $("zoom-image")].includes(event.target)) $("zoom").close(); });
    $("zoom").addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step) { event.preventDefault(); this.zoom(this.zoomed + step); }
    });
    $("help-button").addEventListener("click", () => $("help").showModal());
    $("help-close").addEventListener("click", () => $("help").close());
    $("more").addEventListener("click", () => {
      const whole = $("more").parentElement.classList.toggle("whole");
      $("more").textContent = whole ? "Show less of the prompt" : "Show the whole prompt";
      $("more").blur(); // return the keys to the answers
    });
    $("copy").addEventListener("click", async () => {
      $("link").select();
      try { await navigator.clipboard.writeText($("link").value); } catch { document.execCommand("copy"); } // no clipboard over plain http
      $("copy").textContent = "Copied";
    });
    addEventListener("keydown", (event) => { if (event.key === "?" && !$("help").open && !$("zoom").open) $("help").showModal(); });
  }
}
