// Rate every image on four axes.
import { $, Asking } from "/static/asking.js";

const AXES = { alignment: "Follows the prompt", realism: "Looks real, no artefacts", detail: "Detail", aesthetics: "Beauty" };
const LEVELS = { excellent: "Excellent", good: "Good", pass: "Pass", fail: "Fail" };
const cards = $("cards");

const copy = (id) => $(id).content.firstElementChild.cloneNode(true);
const fields = () => [...cards.querySelectorAll(".axis")];
const open = () => fields().filter((field) => !field.querySelector(":checked"));

function render(task) {
  cards.replaceChildren(...task.images.map((token, index) => card(task, token, index)));
  cards.style.setProperty("--n", task.images.length);
  mark(open()[0] ?? fields()[0], false);
  count();
}

function card(task, token, index) {
  const made = copy("card");
  const name = `Image ${index + 1} of ${task.images.length}`;
  const image = made.querySelector("img");
  Object.assign(image, { src: `/image/${token}`, width: task.width, height: task.height, alt: name });
  made.querySelector(".picture").addEventListener("click", () => asking.zoom(index));
  made.setAttribute("aria-label", name);
  made.querySelector(".axes").append(...Object.keys(AXES).map((axis) => axisField(task, token, axis)));
  return made;
}

function axisField(task, token, axis) {
  const made = copy("axis");
  made.querySelector("legend").textContent = AXES[axis];
  Object.assign(made.dataset, { image: token, axis });
  made.querySelector(".levels").append(...Object.entries(LEVELS).map(([level, text]) => levelLabel(task, token, axis, level, text)));
  made.addEventListener("focusin", () => mark(made, false));
  made.addEventListener("change", (event) => answer(task, made, event.target.value));
  return made;
}

function levelLabel(task, token, axis, level, text) {
  const made = copy("level");
  Object.assign(made.firstElementChild, { name: `${token}-${axis}`, value: level, checked: task.answers[token][axis] === level });
  made.lastElementChild.textContent = text;
  return made;
}

function answer(task, field, level) {
  const { image, axis } = field.dataset;
  const before = isComplete(task);
  task.answers[image][axis] = level;
  if (!before && isComplete(task)) asking.done += 1;
  asking.outbox.add({ task: task.task, image, axis, level });
  count();
  asking.progress();
}

const isComplete = (task) => Object.values(task.answers).every((given) => Object.keys(AXES).every((axis) => given[axis]));

function mark(field, scroll = true) {
  for (const each of fields()) each.classList.toggle("current", each === field);
  if (scroll) field?.scrollIntoView({ block: "nearest" });
}

function count() {
  const left = open().length;
  $("next").disabled = left > 0;
  $("left-to-do").textContent = left ? `${left} of ${fields().length} left` : "Complete";
}

function next() {
  if (asking.takesInput() && !open().length) {
    asking.forward();
    scrollTo(0, 0);
  }
}

const asking = new Asking("rating", render);
$("next").addEventListener("click", (event) => { if (event.detail < 2) next(); });
cards.addEventListener("submit", (event) => event.preventDefault());

function pressed(number) {
  const field = cards.querySelector(".axis.current");
  const input = field?.querySelectorAll("input")[number];
  if (!input || !asking.takesInput()) return;
  input.checked = true;
  answer(asking.current, field, input.value);
  const all = fields();
  const order = [...all.slice(all.indexOf(field) + 1), ...all];
  mark(order.find((each) => open().includes(each)) ?? field);
}

function move(step) {
  const all = fields();
  mark(all[Math.max(0, Math.min(all.length - 1, all.findIndex((each) => each.matches(".current")) + step))]);
}

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open || $("zoom").open) return;
  const inRadio = document.activeElement?.matches("input[type=radio]");
  const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
  if (event.repeat && !step) return;
  if (/^[1-4]$/.test(event.key)) pressed(Number(event.key) - 1);
  else if (step && !inRadio) { event.preventDefault(); move(step); }
  else if (event.key === "Enter" && !document.activeElement?.matches("button")) { event.preventDefault(); next(); }
  else if (event.key === "Backspace") asking.back();
  else if (event.key.toLowerCase() === "z") asking.zoom(Math.max(0, [...cards.children].findIndex((each) => each.querySelector(".current"))));
});
