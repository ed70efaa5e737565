"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const make = (tag, text, attributes = {}) => {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
};
const heat = (p) => data.heat[p] || 0;

let marked;  // the place whose lines are lit, which another level shows, too

function mark(place, from) {
  marked = place;
  document.querySelectorAll(".on").forEach((node) => node.classList.remove("on"));
  if (place === undefined) return;
  for (const pane of [$("source"), $("level")]) {
    const lines = pane.querySelectorAll(`[data-p="${place}"]`);
    lines.forEach((node) => node.classList.add("on"));
    if (lines.length && from && pane !== from) {
      pane.scrollTop = lines[0].offsetTop - pane.offsetTop - pane.clientHeight / 3;
    }
  }
}

function listen(pane) {
  const place = (event) => event.target.closest("[data-p]")?.dataset.p;
  pane.addEventListener("mouseover", (event) => mark(place(event)));
  pane.addEventListener("click", (event) => mark(place(event), pane));
  pane.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    const lines = [...pane.querySelectorAll("[data-p]")];
    const at = lines.findIndex((node) => node === document.activeElement);
    const next = lines[Math.min(Math.max(at + step, 0), lines.length - 1)];
    if (next) { next.focus(); mark(next.dataset.p, pane); event.preventDefault(); }
  });
}

function line(text, place, number, hot) {
  const node = make("div");
  if (place >= 0) { node.dataset.p = place; node.tabIndex = -1; }
  if (hot) node.append(make("span", "", { class: "h", style: `--w:${Math.round(heat(place) * 100)}%`,
    title: data.costs[place] || "" }));
  if (number) node.append(make("span", number, { class: "n" }));
  node.append(text || " ");
  return node;
}

function show(index) {
  $("tabs").querySelectorAll("button").forEach((b, i) => {
    b.setAttribute("aria-selected", i === index);
    b.tabIndex = i === index ? 0 : -1;
  });
  $("tabs").scrollLeft = $("tabs").children[index].offsetLeft - $("tabs").offsetLeft - 40;
  $("level").replaceChildren(...data.levels[index].lines.map(([text, place]) => line(text, place)));
  $("level").scrollTop = 0;
  mark(marked, $("source"));
}

for (const [file, lines] of data.sources) {
  $("source").append(...(data.sources.length > 1 ? [line("# " + file, -1)] : []),
    ...lines.map(([number, text, place]) => line(text, place, number, data.heated)));
}
data.levels.forEach((level, i) => {
  const button = make("button", level.title, { role: "tab", type: "button" });
  button.addEventListener("click", () => show(i));
  $("tabs").append(button);
});
$("tabs").addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const buttons = [...$("tabs").children], next = (buttons.indexOf(document.activeElement) + step + buttons.length) % buttons.length;
  show(next); buttons[next].focus();
});
[$("source"), $("level")].forEach(listen);
show(data.first);

function draw(details, picture) {
  const width = 34, height = 22, rows = picture.cells.length, columns = rows ? picture.cells[0].length : 0;
  const canvas = make("canvas", undefined, { role: "img", "aria-label": `layout ${picture.layout}` }), scale = window.devicePixelRatio || 1;
  canvas.width = (columns * width + 30) * scale; canvas.height = (rows * height + 20) * scale;
  canvas.style.width = columns * width + 30 + "px"; canvas.style.height = rows * height + 20 + "px";
  const g = canvas.getContext("2d");
  g.scale(scale, scale); g.font = "10px monospace"; g.textAlign = "center"; g.textBaseline = "middle";
  const ink = getComputedStyle(document.body).color;
  for (let c = 0; c < columns; c++) { g.fillStyle = ink; g.fillText(c, 28 + c * width + width / 2, 8); }
  picture.cells.forEach((row, r) => {
    g.fillStyle = ink; g.fillText(r, 13, 18 + r * height + height / 2);
    row.forEach(([owner, other], c) => {
      g.fillStyle = owner < 0 ? "#999" : `hsl(${(owner * 137) % 360} 65% 82%)`;
      g.fillRect(28 + c * width, 18 + r * height, width - 1, height - 1);
      g.fillStyle = "#222";
      g.fillText(picture.kind === "registers" ? `${owner}:${other}` : other, 28 + c * width + width / 2, 18 + r * height + height / 2);
    });
  });
  const box = make("div", undefined, { class: "scroll" });
  box.append(canvas);
  details.append(box);
}
document.querySelectorAll("details[data-picture]").forEach((node) => {
  node.addEventListener("toggle", () => {
    if (node.open && !node.querySelector("canvas")) draw(node, data.pictures[node.dataset.picture]);
  });
  if (node.open) draw(node, data.pictures[node.dataset.picture]);
});
