// Images divided by a line (left one model, right another), and the viewer of a comparison.

const cutAt = (stack, share) => stack.style.setProperty("--cut", `${share}%`);

// The line follows the pointer and returns to the position of the slider.
function followed(stack, resting) {
  stack.addEventListener("pointermove", (event) => {
    const box = stack.getBoundingClientRect();
    cutAt(stack, Math.max(0, Math.min(100, (100 * (event.clientX - box.left)) / box.width)));
  });
  stack.addEventListener("pointerleave", () => cutAt(stack, resting()));
}

// One run: all tiles share a slider for the line and one for the update of the right side.
for (const section of document.querySelectorAll("[data-compare]")) {
  const cut = section.querySelector("[name=cut]");
  const step = section.querySelector("[name=step]");
  const tiles = section.querySelectorAll(".stack");
  const resting = () => 100 - cut.value;

  cut.addEventListener("input", () => tiles.forEach((stack) => cutAt(stack, resting())));
  tiles.forEach((stack) => followed(stack, resting));
  const setStep = () => {
    section.querySelector("output").textContent = step.dataset.steps.split(",")[step.value];
    for (const image of section.querySelectorAll(".after")) image.classList.toggle("on", image.dataset.frame === step.value);
  };
  if (step) step.addEventListener("input", setStep);
}

// A comparison: the viewer takes its images from the table below it, which also works without scripts.
for (const section of document.querySelectorAll("[data-viewer]")) {
  const viewer = section.querySelector(".viewer");
  if (!viewer) continue;
  const named = (name) => viewer.querySelector(`[name=${name}]`);
  const [left, right, group, cut, place] = ["left", "right", "group", "cut", "place"].map(named);
  const all = [...section.querySelectorAll("table.gallery tbody tr")];
  const stack = viewer.querySelector(".stack");
  let rows = all;

  const side = (row, select) => row.querySelectorAll("td")[select.value];
  const name = (select) => select.selectedOptions[0].textContent;

  const put = (image, cell, text) => {
    const source = cell.querySelector("img");
    image.hidden = !source;
    if (source) image.src = source.src;
    image.alt = text;
  };

  const fillTable = (cells) => {
    const numbers = cells.map((cell) => JSON.parse(cell.dataset.numbers));
    const heads = viewer.querySelectorAll(".values thead th");
    [left, right].forEach((select, index) => (heads[index + 1].textContent = name(select)));
    const body = viewer.querySelector(".values tbody");
    body.replaceChildren();
    for (const label of new Set(numbers.flatMap(Object.keys))) {
      const line = body.insertRow();
      const head = document.createElement("th");
      head.scope = "row";
      head.textContent = label;
      line.append(head);
      for (const each of numbers) Object.assign(line.insertCell(), { className: "number", textContent: each[label] ?? "–" });
    }
    viewer.querySelector(".values").hidden = body.rows.length === 0;
  };

  const show = () => {
    const row = rows[place.value];
    const cells = [side(row, left), side(row, right)];
    const [before, after] = stack.querySelectorAll("img");
    put(before, cells[0], `${name(left)}: ${row.dataset.prompt}`);
    put(after, cells[1], `${name(right)}: ${row.dataset.prompt}`);
    viewer.querySelector(".prompt").textContent = row.dataset.prompt;
    viewer.querySelector(".seed").textContent = `seed ${row.dataset.seed}${row.dataset.group ? ` · ${row.dataset.group}` : ""}`;
    viewer.querySelector("output").textContent = `${Number(place.value) + 1} of ${rows.length}`;
    all.forEach((each) => each.classList.toggle("now", each === row));
    fillTable(cells);
  };

  const go = (index) => {
    place.value = (index + rows.length) % rows.length;
    show();
  };

  const choose = () => {
    rows = all.filter((row) => !group || !group.value || row.dataset.group === group.value);
    all.forEach((row) => (row.hidden = !rows.includes(row)));
    place.max = rows.length - 1;
    go(0);
  };

  viewer.hidden = false;
  section.querySelector("table.gallery").classList.add("live");
  const resting = () => cut.value;
  followed(stack, resting);
  cut.addEventListener("input", () => cutAt(stack, resting()));
  place.addEventListener("input", show);
  [left, right].forEach((select) => select.addEventListener("change", show));
  if (group) group.addEventListener("change", choose);
  named("back").addEventListener("click", () => go(Number(place.value) - 1));
  named("on").addEventListener("click", () => go(Number(place.value) + 1));
  all.forEach((row) => row.addEventListener("click", () => go(rows.indexOf(row))));
  go(0);
}

// Several runs: what is unchecked is hidden, in tables, charts and images.
for (const filter of document.querySelectorAll("[data-filter]")) {
  const boxes = [...filter.querySelectorAll("[type=checkbox]")];
  const search = filter.querySelector("[type=search]");
  const content = document.querySelector(".of-runs");
  const hide = () => {
    for (const { name, checked } of boxes)
      for (const one of content.querySelectorAll(`[data-run="${name}"], .charts .${name}, .scatter .${name}`)) one.classList.toggle("gone", !checked);
  };
  filter.hidden = false;
  boxes.forEach((box) => box.addEventListener("change", hide));
  search?.addEventListener("input", () => {
    for (const box of boxes) box.checked = box.closest("label").dataset.words.includes(search.value.trim().toLowerCase());
    hide();
  });
}

// The page of a running run reads its file again, unless someone is using it; it says so when the file is no longer written.
for (const live of document.querySelectorAll("[data-live]")) {
  let used = 0;
  for (const kind of ["pointerdown", "keydown", "input", "wheel", "touchmove"]) addEventListener(kind, () => (used = Date.now()), { passive: true });
  const look = () => {
    const age = Date.now() / 1000 - live.dataset.written;
    live.hidden = age < live.dataset.late;
    live.querySelector("output").textContent = age < 7200 ? `${Math.round(age / 60)} min` : `${Math.round(age / 3600)} h`;
  };
  look();
  setInterval(() => (document.hidden || Date.now() - used < 20000 ? look() : location.reload()), 10000);
}

// Commands and recipes have a button that copies them; where the browser forbids that, it selects them.
for (const pre of document.querySelectorAll("pre.command, pre.copied")) {
  const box = document.createElement("div");
  const button = document.createElement("button");
  Object.assign(box, { className: "with-copy" });
  Object.assign(button, { type: "button", textContent: "Copy" });
  pre.replaceWith(box);
  box.append(pre, button);
  button.addEventListener("click", async () => {
    getSelection().selectAllChildren(pre);
    try {
      await navigator.clipboard.writeText(pre.textContent);
      button.textContent = "Copied";
    } catch {
      button.textContent = document.execCommand("copy") ? "Copied" : "Selected";
    }
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
}
