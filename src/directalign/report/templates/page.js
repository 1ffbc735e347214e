// Two sliders for all tiles of a section: where the picture is cut, and after which update the right side was made.
for (const section of document.querySelectorAll("[data-compare]")) {
  const cut = section.querySelector("[name=cut]");
  const step = section.querySelector("[name=step]");
  const tiles = section.querySelectorAll(".stack");

  const setCut = (stack, share) => stack.style.setProperty("--cut", `${share}%`);
  cut.addEventListener("input", () => tiles.forEach((stack) => setCut(stack, 100 - cut.value)));

  const setStep = () => {
    section.querySelector("output").textContent = step.dataset.steps.split(",")[step.value];
    for (const image of section.querySelectorAll(".after")) image.classList.toggle("on", image.dataset.frame === step.value);
  };
  if (step) step.addEventListener("input", setStep);

  for (const stack of tiles) {
    stack.addEventListener("pointermove", (event) => {
      const box = stack.getBoundingClientRect();
      setCut(stack, Math.max(0, Math.min(100, (100 * (event.clientX - box.left)) / box.width)));
    });
    stack.addEventListener("pointerleave", () => setCut(stack, 100 - cut.value));
  }
}
