// What the page of all runs does in the browser: asks for the parts that change, posts, keeps the form and the YAML in step.
const $ = (id) => document.getElementById(id);

async function post(path, body) {
  try {
    const response = await fetch(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
    return { ok: response.ok, answer: await response.json() };
  } catch {
    return { ok: false, answer: { error: "the server does not respond" } };
  }
}

const sentence = (text) => (text ? `${text[0].toUpperCase()}${text.slice(1)}.` : "");

// Parts: a newer one replaces the one with the same id; what is open or has the focus stays so.
const path = document.body.dataset.poll;
let tag = "";
let pressed = false; // a button that is replaced before it is released is not clicked
addEventListener("pointerdown", (event) => (pressed = event.button === 0));
for (const kind of ["pointerup", "pointercancel", "contextmenu", "dragend", "blur"]) addEventListener(kind, () => (pressed = false));

function replace(part) {
  const old = $(part.id);
  for (const one of old.querySelectorAll("details[open]")) part.querySelector(`#${one.id}`)?.setAttribute("open", "");
  const button = document.activeElement?.dataset.post;
  const problem = $("problem")?.textContent;
  const scrolled = old.querySelector("pre")?.scrollTop;
  old.replaceWith(part);
  if (button) part.querySelector(`[data-post="${button}"]`)?.focus();
  if (problem && part.contains($("problem"))) $("problem").textContent = problem;
  if (scrolled) part.querySelector("pre").scrollTop = scrolled;
}

async function poll() {
  try {
    const response = await fetch(path, { headers: tag ? { "if-none-match": tag } : {}, cache: "no-store" });
    $("lost").hidden = response.status < 400;
    if (response.status >= 400) $("lost").textContent = sentence((await response.json()).error);
    if (response.status === 200 && !pressed) {
      tag = response.headers.get("etag");
      const found = new DOMParser().parseFromString(await response.text(), "text/html");
      for (const part of found.querySelectorAll("[data-part]")) replace(part);
      offerSamples();
    }
  } catch {
    $("lost").textContent = "The server does not respond. Runs go on without it.";
    $("lost").hidden = false;
  }
}

if (path) {
  const again = async () => {
    if (!document.hidden) await poll();
    setTimeout(again, 1500);
  };
  setTimeout(again, 1500);
  document.addEventListener("visibilitychange", () => document.hidden || poll());
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-post]");
    if (!button) return;
    button.disabled = true;
    const { ok, answer } = await post(button.dataset.post, { run: button.dataset.run });
    $("problem").textContent = ok ? "" : sentence(answer.error);
    tag = "";
    await poll();
  });
}

// The wipe between the sample grids of two steps; the right side follows the newest until someone chooses.
const wipe = $("wipe");
const [left, right] = ["left", "right"].map((name) => wipe?.querySelector(`[name=${name}]`));
let chosen = false;

function offerSamples() {
  if (!wipe) return;
  const steps = $("more").dataset.samples.split(",").filter(Boolean);
  if ($("more").dataset.prompts !== wipe.dataset.prompts) return location.reload(); // the page was opened before there were any
  wipe.hidden = !steps.length;
  if (wipe.hidden || left.options.length === steps.length) return;
  for (const select of [left, right]) {
    const before = select.value;
    select.replaceChildren(...steps.map((step) => new Option(step === "0" ? "base model" : `step ${step}`, step)));
    select.value = steps.includes(before) ? before : steps[0];
  }
  if (!chosen) right.value = steps[steps.length - 1];
  showSamples();
}

function showSamples() {
  wipe.querySelectorAll(".stack").forEach((stack, cell) => {
    stack.querySelectorAll("img").forEach((image, side) => {
      image.onload = () => image.classList.toggle("pixels", image.naturalWidth <= 128);
      const source = `/sample/${wipe.dataset.run}/${[left, right][side].value}/${cell}`;
      if (image.getAttribute("src") !== source) image.src = source;
    });
  });
}

if (wipe) {
  for (const select of [left, right]) select.addEventListener("change", () => { chosen = true; showSamples(); });
  offerSamples();
}

// The form: the YAML is what counts; a field changes one key of it, and the server says what is wrong where.
const form = $("new");

function take(answer) {
  if (answer.html === undefined) return void ($("problem").textContent = sentence(answer.error));
  $("problem").textContent = sentence(answer.error);
  if (document.activeElement !== $("text")) $("text").value = answer.text;
  const found = new DOMParser().parseFromString(answer.html, "text/html").body;
  const keys = (node) => [...node.querySelectorAll("[data-key]")].map((each) => each.dataset.key).join();
  if (keys(found) !== keys($("fields"))) {
    const focused = document.activeElement?.id;
    for (const one of $("fields").querySelectorAll("details[open]")) found.querySelector(`[id="${one.id}"]`)?.setAttribute("open", "");
    $("fields").replaceChildren(...found.childNodes);
    return void document.getElementById(focused)?.focus();
  }
  $("fields").querySelector(".problems").replaceWith(found.querySelector(".problems"));
  for (const field of found.querySelectorAll("[data-key]")) {
    const own = $("fields").querySelector(`[data-key="${field.dataset.key}"]`);
    const [input, now] = [own, field].map((each) => each.querySelector("input, select, textarea"));
    own.className = field.className;
    own.querySelector(".problem").textContent = field.querySelector(".problem").textContent;
    if (input !== document.activeElement && !edits.has(input.name)) input.value = now.value;
    if (own.classList.contains("wrong")) own.closest("details")?.setAttribute("open", "");
  }
}

const edits = new Map();
let sending = Promise.resolve();

function send(where, more = {}) {
  return (sending = sending.then(async () => {
    const changes = Object.fromEntries(edits);
    edits.clear();
    const { ok, answer } = await post(where, { text: $("text").value, changes, ...more });
    if (ok && answer.page) return location.assign(answer.page);
    take(answer);
    if (where.endsWith("start")) document.querySelector(".wrong, .problems li")?.scrollIntoView({ block: "center" });
  }));
}

if (form) {
  $("recipe").addEventListener("change", () => location.assign(`/new?recipe=${encodeURIComponent($("recipe").value)}`));
  $("text").addEventListener("change", () => send("/api/form"));
  $("fields").addEventListener("change", (event) => {
    edits.set(event.target.name, event.target.value);
    send("/api/form");
  });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = form.querySelector("[type=submit]");
    button.disabled = true;
    await send("/api/start", { name: $("run-name").value });
    button.disabled = false;
  });
}
