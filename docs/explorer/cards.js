// One card a network: its verdict, probabilities or picture, and its curve.

import { paint } from "./image.js";

const SVG = "http://www.w3.org/2000/svg";
const LEFT = 30, RIGHT = 312, TOP = 8, BOTTOM = 108;

/** Makes the card of a network; returns a function that shows an answer for a state. `worst` is the largest error of
 *  all networks that render, whose curves share an axis. */
export function card(network, parent, worst) {
  const part = document.getElementById("card").content.firstElementChild.cloneNode(true);
  const find = (selector) => part.querySelector(selector);
  part.dataset.network = network.name;
  find("h3").textContent = network.title;
  find(".what").textContent = network.what;
  find(".about").textContent = network.about;
  const picture = network.picture ? portrait(find(".answer"), network.picture) : null;
  const expected = network.task === "generation" ? portrait(find(".answer"), "Expected") : null;
  const bars = network.task === "recognition" ? probabilityBars(find(".answer"), network.classes) : null;
  parent.append(part);
  return (answer, state) => {
    if (picture && answer.picture) paint(picture, answer.picture);
    if (expected) paint(expected, state.turned);
    if (bars) bars(answer.probabilities, state.label);
    const verdict = judged(network, answer, state);
    find(".verdict").textContent = verdict.text;
    if (verdict.right === undefined) delete find(".verdict").dataset.right;
    else find(".verdict").dataset.right = verdict.right;
    drawCurve(network, state, network.task === "recognition" ? 1 : worst, find("svg"), find(".curve figcaption"));
    return verdict.text;
  };
}

function judged(network, answer, { label, turned }) {
  if (network.task === "generation") {
    const sum = answer.picture.reduce((total, value, index) => total + (value - turned[index]) ** 2, 0);
    return { text: `Squared error ${((network.scale * sum) / turned.length).toFixed(3)}` };
  }
  const best = answer.probabilities.indexOf(Math.max(...answer.probabilities));
  const text = `Says ${network.classes[best]} (${Math.round(100 * answer.probabilities[best])} %)`;
  if (!network.classes.includes(String(label))) return { text };
  return network.classes[best] === String(label) ? { text: `${text}: right`, right: true } : { text: `${text}: wrong`, right: false };
}

function portrait(parent, caption) {
  const figure = document.createElement("figure"), canvas = document.createElement("canvas");
  canvas.width = canvas.height = 112;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", caption);
  const text = document.createElement("figcaption");
  text.textContent = caption;
  figure.append(canvas, text);
  parent.append(figure);
  return canvas;
}

function probabilityBars(parent, classes) {
  const list = document.createElement("ul");
  list.className = "bars";
  list.setAttribute("aria-label", "Probability of each class");
  const rows = classes.map((name) => {
    const row = document.createElement("li");
    row.innerHTML = '<span></span><span class="track" aria-hidden="true"><i></i></span><span></span>';
    row.firstElementChild.textContent = name;
    list.append(row);
    return row;
  });
  parent.append(list);
  return (probabilities, label) =>
    rows.forEach((row, index) => {
      const percent = 100 * probabilities[index];
      row.dataset.truth = classes[index] === String(label);
      row.querySelector("i").style.width = `${percent}%`;
      row.lastElementChild.textContent = `${percent.toFixed(0)} %`;
    });
}

function drawCurve(network, { label, degrees }, top, svg, caption) {
  const points = network.curves[label];
  svg.replaceChildren();
  svg.parentElement.hidden = points === undefined;
  if (points === undefined) return;
  const x = (angle) => LEFT + ((angle + 180) / 360) * (RIGHT - LEFT);
  const y = (value) => BOTTOM - (value / top) * (BOTTOM - TOP);
  const add = (name, attributes, text = "") => {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.textContent = text;
    svg.append(element);
  };
  const [low, high] = network.restricted.includes(label) ? network.range : [-180, 180];
  add("rect", { class: "range", x: x(low), y: TOP, width: x(high) - x(low), height: BOTTOM - TOP });
  for (const part of [0, 1]) {
    add("line", { class: "axis", x1: LEFT, x2: RIGHT, y1: y(part * top), y2: y(part * top) });
    add("text", { x: LEFT - 4, y: y(part * top) + 3, "text-anchor": "end" }, format(part * top));
  }
  for (const angle of [-180, -90, 0, 90, 180]) {
    const anchor = angle === 180 ? "end" : "middle";
    add("text", { x: x(angle), y: BOTTOM + 14, "text-anchor": anchor }, `${angle}°`);
  }
  // The sweep ends before 180 degrees, which is -180.
  const closed = points[points.length - 1][0] < 180 ? [...points, [180, points[0][1]]] : points;
  add("polyline", { class: "line", points: closed.map(([a, v]) => `${x(a)},${y(v)}`).join(" ") });
  const value = interpolated(closed, degrees);
  add("line", { class: "here", x1: x(degrees), x2: x(degrees), y1: TOP, y2: BOTTOM });
  add("circle", { cx: x(degrees), cy: y(value), r: 4 });
  const what = network.task === "recognition" ? "Accuracy" : "Squared error";
  caption.textContent = `${what} on all test images of ${label} by angle; here ${value.toFixed(network.task === "recognition" ? 2 : 3)}`;
  svg.setAttribute("aria-label", `${caption.textContent}, at ${degrees} degrees. Trained from ${low} to ${high} degrees.`);
}

function format(value) {
  return value === 0 || value === 1 ? String(value) : value.toFixed(2);
}

function interpolated(points, at) {
  const next = Math.max(1, points.findIndex(([angle]) => angle >= at));
  const [[a, from], [b, to]] = [points[next - 1], points[next]];
  return from + ((to - from) * (at - a)) / (b - a);
}
