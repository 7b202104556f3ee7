// Attention: a picture of every head of every layer, the chosen one large, and what the chosen token reads.

import { el, paint } from "../../../tensorgrad/inspect/static/base.js";
import { range, reveal, tint, token, visible } from "./tokens.js";

/** The panel; see panels.js. */
export function attentionPanel(model, choose) {
  const n = model.tokens.length;
  const heads = [];
  const rows = range(model.nLayer).map((layer) => el("tr", {},
    el("th", { scope: "row" }, layer + 1),
    range(model.nHead).map((head) => {
      const canvas = el("canvas", { "aria-hidden": "true" });
      const button = el("button", {
        type: "button", class: "head", tabIndex: -1, "aria-pressed": "false", "aria-label": `layer ${layer + 1}, head ${head + 1}`,
        onclick: () => choose({ layer, head }),
      }, canvas);
      heads.push({ canvas, button });
      return el("td", {}, button);
    })));
  const all = el("div", { class: "scroll heads", tabIndex: 0, role: "region", "aria-label": `all heads of ${model.name}` },
    el("table", {}, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "layer"),
      range(model.nHead).map((head) => el("th", { scope: "col" }, head + 1)))), el("tbody", {}, rows)));
  const large = largeMap(model, choose);
  let drawn = null;
  const draw = (frame) => heads.forEach(({ canvas }, i) =>
    paintWeights(canvas, frame.head(Math.floor(i / model.nHead), i % model.nHead), n));
  document.addEventListener("themechange", () => { if (drawn) { draw(drawn); large.redraw(); } });
  let marked = null;
  const mark = (button) => {
    if (button === marked) return;
    const focused = marked !== null && marked === document.activeElement;
    marked?.setAttribute("aria-pressed", "false");
    if (marked) marked.tabIndex = -1;
    button.setAttribute("aria-pressed", "true");
    button.tabIndex = 0;
    if (focused) button.focus();
    reveal(all, button);
    marked = button;
  };
  const update = (view) => {
    if (drawn !== view.frame) draw(view.frame);
    drawn = view.frame;
    mark(heads[view.layer * model.nHead + view.head].button);
    large.update(view);
  };
  return { element: el("div", { class: "attention" }, all, large.element), update };
}

/** Weights as colours, which follow the square root: small weights are seen, too. */
function paintWeights(canvas, numbers, n) {
  paint(canvas, Float32Array.from(numbers, Math.sqrt), n, n, 1);
}

/** One head: its picture, the element under the mouse, and the weights of the chosen token. */
function largeMap(model, choose) {
  const n = model.tokens.length;
  const name = (i) => visible(model.texts[model.tokens[i]]);
  const canvas = el("canvas", { role: "img", class: "large" });
  const marker = el("div", { class: "marker" });
  const cell = el("output", { class: "cell" });
  const title = el("h3");
  const weights = el("ul", { class: "chips" });
  let numbers = null;
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    const index = (offset, size) => Math.max(0, Math.min(n - 1, Math.floor((offset / size) * n)));
    return [index(event.clientY - box.top, box.height), index(event.clientX - box.left, box.width)];
  };
  canvas.addEventListener("pointermove", (event) => {
    const [row, column] = at(event);
    cell.textContent = `${name(row)} reads ${name(column)}: ${numbers[row * n + column].toFixed(3)}`;
  });
  canvas.addEventListener("click", (event) => choose({ position: at(event)[0] }));
  const redraw = () => paintWeights(canvas, numbers, n);
  const update = ({ frame, layer, head, position }) => {
    numbers = frame.head(layer, head);
    redraw();
    marker.style.top = `${(100 * position) / n}%`;
    marker.style.height = `${100 / n}%`;
    const where = `layer ${layer + 1}, head ${head + 1}`;
    canvas.setAttribute("aria-label", `The weights of ${where}; those of the chosen token are listed beside it.`);
    title.replaceChildren(`${where[0].toUpperCase()}${where.slice(1)}: what `, token(model.texts[model.tokens[position]]), " reads");
    weights.replaceChildren(...Array.from(numbers.subarray(position * n, position * n + position + 1), (weight, i) => {
      const chip = el("li", { class: "chip" }, token(model.texts[model.tokens[i]]),
        el("span", { class: "number" }, weight.toFixed(3)));
      tint(chip, Math.sqrt(weight));
      return chip;
    }));
  };
  return { element: el("div", { class: "one-head" }, title, weights, el("div", { class: "picture" }, canvas, marker), cell), update, redraw };
}
