"use strict";
// Scrolls through volumes that stand in the page. Arrays are (D, H, W): to superior, to posterior, to the patient's
// left.
const PLANES = {
  axial: {axis: 0, marks: ["A", "L", "P", "R"]},
  coronal: {axis: 1, marks: ["S", "L", "I", "R"]},
  sagittal: {axis: 2, marks: ["S", "P", "I", "A"]},
};
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (name) => document.getElementById(name);
const canvas = byId("canvas"), context = canvas.getContext("2d");
const state = {volume: null, plane: "axial", slice: {axial: 0, coronal: 0, sagittal: 0}};
const colours = data.colours.map((text) => [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16)));

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function open(number) {
  const found = data.cases[number];
  const packed = [found.image, found.reference, found.prediction];
  const [image, reference, prediction] = await Promise.all(packed.map(unpack));
  state.volume = {shape: found.shape, spacing: found.spacing, image, reference, prediction};
  Object.keys(PLANES).forEach((name) => { state.slice[name] = found.start[PLANES[name].axis]; });
  choose(state.plane);
}

function choose(plane) {
  state.plane = plane;
  document.querySelectorAll("button[data-plane]").forEach((button) => button.setAttribute("aria-pressed",
    String(button.dataset.plane === plane)));
  byId("slice").max = state.volume.shape[PLANES[plane].axis] - 1;
  draw();
}

// The voxel at a row and column of the shown slice: superior is up, so D runs backwards.
function voxel(row, column) {
  const [depth, height, width] = state.volume.shape, at = state.slice[state.plane];
  if (state.plane === "axial") return (at * height + row) * width + column;
  if (state.plane === "coronal") return ((depth - 1 - row) * height + at) * width + column;
  return ((depth - 1 - row) * height + column) * width + at;
}

function extent() {
  const [rows, columns] = [0, 1, 2].filter((axis) => axis !== PLANES[state.plane].axis);
  const {shape, spacing} = state.volume;
  return {rows: shape[rows], columns: shape[columns], tall: shape[rows] * spacing[rows],
    wide: shape[columns] * spacing[columns]};
}

function draw() {
  const size = extent(), scale = 620 / Math.max(size.tall, size.wide);
  canvas.width = Math.round(size.wide * scale);
  canvas.height = Math.round(size.tall * scale);
  const picture = context.createImageData(canvas.width, canvas.height), pixels = picture.data;
  const rows = Int32Array.from({length: canvas.height}, (_, y) => Math.floor(y * size.rows / canvas.height));
  const columns = Int32Array.from({length: canvas.width}, (_, x) => Math.floor(x * size.columns / canvas.width));
  const {image, reference, prediction} = state.volume;
  const filled = byId("prediction").checked, outlined = byId("reference").checked;
  for (let y = 0; y < canvas.height; y++) {
    for (let x = 0; x < canvas.width; x++) {
      const here = voxel(rows[y], columns[x]), to = 4 * (y * canvas.width + x);
      let red = image[here], green = red, blue = red;
      const guess = prediction[here], truth = reference[here];
      if (filled && guess) {
        const [r, g, b] = colours[(guess - 1) % colours.length];
        red = 0.6 * red + 0.4 * r; green = 0.6 * green + 0.4 * g; blue = 0.6 * blue + 0.4 * b;
      }
      if (outlined) {
        const right = reference[voxel(rows[y], columns[Math.min(x + 2, canvas.width - 1)])],
          below = reference[voxel(rows[Math.min(y + 2, canvas.height - 1)], columns[x])];
        const left = reference[voxel(rows[y], columns[Math.max(x - 1, 0)])],
          above = reference[voxel(rows[Math.max(y - 1, 0)], columns[x])];
        const edge = [truth, right, below, left, above].find((value) => value > 0);
        if (edge && (right !== truth || below !== truth || left !== truth || above !== truth))
          [red, green, blue] = colours[(edge - 1) % colours.length];
      }
      pixels[to] = red; pixels[to + 1] = green; pixels[to + 2] = blue; pixels[to + 3] = 255;
    }
  }
  context.putImageData(picture, 0, 0);
  mark();
  byId("slice").value = state.slice[state.plane];
  const count = state.volume.shape[PLANES[state.plane].axis];
  byId("place").textContent = `${state.plane}, slice ${state.slice[state.plane] + 1} of ${count}`;
}

function mark() {
  context.font = "bold 15px sans-serif";
  context.textAlign = "center";
  context.textBaseline = "middle";
  const [top, right, bottom, left] = PLANES[state.plane].marks, middle = [canvas.width / 2, canvas.height / 2];
  for (const [letter, x, y] of [
    [top, middle[0], 12], [right, canvas.width - 12, middle[1]],
    [bottom, middle[0], canvas.height - 12], [left, 12, middle[1]],
  ]) {
    context.lineWidth = 3;
    context.strokeStyle = "black";
    context.strokeText(letter, x, y);
    context.fillStyle = "white";
    context.fillText(letter, x, y);
  }
}

function move(by) {
  const last = state.volume.shape[PLANES[state.plane].axis] - 1;
  state.slice[state.plane] = Math.min(last, Math.max(0, state.slice[state.plane] + by));
  draw();
}

canvas.addEventListener("wheel", (event) => { event.preventDefault(); move(event.deltaY > 0 ? -1 : 1); },
  {passive: false});
canvas.addEventListener("keydown", (event) => {
  const by = {ArrowUp: 1, ArrowDown: -1, PageUp: 10, PageDown: -10}[event.key];
  if (by) { event.preventDefault(); move(by); }
});
canvas.addEventListener("mousemove", (event) => {
  const box = canvas.getBoundingClientRect(), size = extent();
  const row = Math.min(size.rows - 1, Math.max(0, Math.floor((event.clientY - box.top) / box.height * size.rows)));
  const column = Math.min(size.columns - 1, Math.max(0,
    Math.floor((event.clientX - box.left) / box.width * size.columns)));
  const here = voxel(row, column), name = (value) => (value ? data.structures[value - 1] : "nothing");
  const {reference, prediction} = state.volume;
  byId("under").textContent = `reference: ${name(reference[here])}, prediction: ${name(prediction[here])}`;
});
byId("slice").addEventListener("input", (event) => { state.slice[state.plane] = Number(event.target.value); draw(); });
byId("case").addEventListener("change", (event) => open(Number(event.target.value)));
["reference", "prediction"].forEach((name) => byId(name).addEventListener("change", draw));
document.querySelectorAll("button[data-plane]").forEach((button) => button.addEventListener("click",
  () => choose(button.dataset.plane)));
data.cases.forEach((found, number) => byId("case").add(new Option(found.title, number)));
open(0).then(() => { document.body.dataset.ready = "yes"; });
