// Choose between two images.
import { $, Asking } from "/static/asking.js";

const pictures = [...document.querySelectorAll(".picture")];
const buttons = [...document.querySelectorAll("[data-choice]")];
const KEYS = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "tie", " ": "tie" };

function render(task) {
  pictures.forEach((picture, side) => {
    const image = picture.firstElementChild;
    Object.assign(image, { src: `/image/${task.images[side]}`, width: task.width, height: task.height });
  });
}

const asking = new Asking("vote", render);

function choose(choice) {
  if (!asking.takesInput()) return;
  asking.ready = false;
  asking.done += 1;
  asking.outbox.add({ task: asking.current.task, choice });
  flash(choice);
  asking.forward();
}

function flash(choice) {
  const button = document.querySelector(`[data-choice=${choice}]`);
  button.classList.remove("chosen");
  void button.offsetWidth; // restart the animation
  button.classList.add("chosen");
}

const plainBack = asking.back.bind(asking);
asking.back = () => {
  const task = plainBack();
  if (!task) return;
  asking.done -= 1;
  asking.outbox.add({ task: task.task, choice: null });
  asking.progress();
};

for (const button of buttons) {
  button.addEventListener("click", (event) => {
    if (event.detail < 2) choose(button.dataset.choice); // ignore the second click of a double click
    if (event.detail) button.blur(); // return the space bar to the tie
  });
}
pictures.forEach((picture, index) => picture.addEventListener("click", () => asking.zoom(index)));

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open || $("zoom").open) return;
  if (event.key === " " && document.activeElement?.matches("button, a")) return; // presses the button
  const choice = KEYS[event.key];
  const back = event.key.toLowerCase() === "u" || event.key === "Backspace";
  if (choice || back) event.preventDefault();
  if (event.repeat) return;
  if (choice) choose(choice);
  else if (back) asking.back();
  else if (event.key.toLowerCase() === "z") asking.zoom(0);
});
