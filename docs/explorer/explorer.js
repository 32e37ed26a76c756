// Wires controls, networks and cards. `window.explorer` is there for the console and the tests.

import { brush, centreOf, middle, paint, SIZE, transformed } from "./image.js";
import { card } from "./cards.js";

const by = (id) => document.getElementById(id);
const state = { image: new Float32Array(SIZE * SIZE), label: null, drawn: false, degrees: 0, across: 0, down: 0 };
const SLIDERS = [["angle", "degrees", "°"], ["across", "across", " px"], ["down", "down", " px"]];
const SPEECH_DELAY = 700; // milliseconds: a screen reader is told when the slider rests
let networks = [], stale = false, working = Promise.resolve(), speech;

function view() {
  const from = state.drawn ? centreOf(state.image) : middle();
  const upright = transformed(state.image, { degrees: 0, across: 0, down: 0, from });
  const turned = transformed(state.image, { degrees: state.degrees, across: 0, down: 0, from });
  return { ...state, upright, turned, seen: transformed(state.image, { ...state, from }) };
}

/** Shows the state; the networks follow as fast as they can, and leave out what is past. */
function refresh() {
  for (const [id, key, unit] of SLIDERS) {
    by(id).value = state[key];
    by(`${id}-value`).textContent = `${state[key]}${unit}`;
  }
  by("label").value = state.label ?? "";
  paint(by("drawing"), state.image);
  paint(by("seen"), view().seen);
  if (!stale) {
    stale = true;
    working = working.then(ask).catch(complain);
  }
}

async function ask() {
  stale = false;
  const shown = view(), said = [];
  by("main").setAttribute("aria-busy", "true");
  for (const network of networks) {
    network.answer = await network.run(shown);
    said.push(`${network.title}: ${network.show(network.answer, shown)}`);
  }
  clearTimeout(speech);
  speech = setTimeout(() => (by("summary").textContent = `At ${shown.degrees}°. ${said.join(". ")}.`), SPEECH_DELAY);
  if (!stale) by("main").setAttribute("aria-busy", "false");
}

function change(changes) {
  Object.assign(state, changes);
  refresh();
}

function complain(error) {
  by("problem").hidden = false;
  by("problem").textContent = `The page cannot go on: ${error.message ?? error}`;
}

const limited = (value) => Math.max(-SIZE / 2, Math.min(SIZE / 2, value));
const wrapped = (angle) => ((((angle + 180) % 360) + 360) % 360) - 180;

/** Calls `moved(x, y, dx, dy)`, in pixels of the image, while a pointer is down on a canvas. */
function onDrag(canvas, moved) {
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * SIZE - 0.5, ((event.clientY - box.top) / box.height) * SIZE - 0.5];
  };
  let last = null;
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    last = place(event);
    moved(...last, 0, 0);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (last === null) return;
    const [x, y] = place(event);
    moved(x, y, x - last[0], y - last[1]);
    last = [x, y];
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (last = null));
}

function draw(x, y, dx, dy) {
  stopTurning();
  if (!state.drawn) {
    state.image = new Float32Array(SIZE * SIZE);
    pressed(null);
    Object.assign(state, { drawn: true, label: null });
  }
  const steps = Math.ceil(2 * Math.hypot(dx, dy)) || 1;
  for (let step = 0; step < steps; step++) brush(state.image, x - (dx * step) / steps, y - (dy * step) / steps);
  refresh();
}

let across = 0, down = 0; // of a drag, before rounding to pixels
function shift(x, y, dx, dy) {
  if (dx === 0 && dy === 0) [across, down] = [state.across, state.down];
  [across, down] = [limited(across + dx), limited(down + dy)];
  change({ across: Math.round(across), down: Math.round(down) });
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
function onKey(event) {
  if (!(event.key in ARROWS)) return;
  event.preventDefault();
  const [dx, dy] = ARROWS[event.key];
  change({ across: limited(state.across + dx), down: limited(state.down + dy) });
}

let turning = null;
function stopTurning() {
  clearInterval(turning);
  turning = null;
  by("turn").setAttribute("aria-pressed", "false");
}
function toggleTurning() {
  if (turning !== null) return stopTurning();
  by("turn").setAttribute("aria-pressed", "true");
  turning = setInterval(() => change({ degrees: wrapped(state.degrees + 3) }), 100);
}

function pressed(button) {
  for (const other of by("picks").children) other.setAttribute("aria-pressed", String(other === button));
}

function addPick({ label, pixels }, index) {
  const image = Float32Array.from(pixels, (value) => value / 255);
  const button = document.createElement("button"), canvas = document.createElement("canvas");
  button.type = "button";
  button.setAttribute("aria-label", `A ${label}, test image ${index + 1}`);
  canvas.width = canvas.height = 56;
  paint(canvas, image);
  button.append(canvas);
  button.addEventListener("click", () => {
    pressed(button);
    change({ image: image.slice(), label, drawn: false });
  });
  by("picks").append(button);
  return button;
}

async function start() {
  const response = await fetch("built/explorer.json");
  if (!response.ok) throw new Error("its networks are missing. Run: python scripts/build_explorer.py");
  const content = await response.json();
  for (let label = 0; label < 10; label++) by("label").add(new Option(label, label));
  const picks = content.images.map(addPick);
  const { open } = await import("./networks.js");
  const rendering = content.networks.filter(({ task }) => task === "generation");
  const worst = Math.max(...rendering.flatMap(({ curves }) => Object.values(curves).flat().map(([, error]) => error)));
  for (const network of content.networks) {
    networks.push({ ...network, run: await open(network), show: card(network, by("cards"), worst) });
  }
  picks[content.images.findIndex(({ label }) => label === content.first)].click();
}

for (const [id, key] of SLIDERS) by(id).addEventListener("input", () => change({ [key]: Number(by(id).value) }));
by("angle").addEventListener("pointerdown", stopTurning);
by("label").addEventListener("change", () => change({ label: by("label").value === "" ? null : Number(by("label").value) }));
by("reset").addEventListener("click", () => (stopTurning(), change({ degrees: 0, across: 0, down: 0 })));
by("clear").addEventListener("click", () => {
  pressed(null);
  change({ image: new Float32Array(SIZE * SIZE), label: null, drawn: true });
});
by("turn").addEventListener("click", toggleTurning);
by("seen").addEventListener("keydown", onKey);
onDrag(by("drawing"), draw);
onDrag(by("seen"), shift);
window.explorer = { state, change, view, networks: () => networks, settled: () => working };
start().catch(complain);
