// What the page shows of one model besides its attention. A panel is an element and `update(view)`, where a view is
// {model, frame, position, layer, head, frameNumber}: the arrays of the frame, and what was chosen.

import { el } from "../../../tensorgrad/inspect/static/base.js";
import { bar, digitsFor, percent, range, reveal, signed, tint, token, visible } from "./tokens.js";

/** The tokens of the text, to choose one of them. */
export function textPanel(model, choose) {
  const numbers = model.tokens.map(() => el("span", { class: "number" }));
  const buttons = model.tokens.map((id, i) => el("button", {
    type: "button", role: "radio", class: "chip", onclick: () => choose({ position: i }),
  }, token(model.texts[id]), numbers[i]));
  const update = ({ frame, position }) => buttons.forEach((button, i) => {
    const probability = i ? frame.nextProbability(model.nLayer, i - 1) : null;
    numbers[i].textContent = i ? percent(probability) : "first";
    tint(button, probability ?? 0);
    const how = i ? `predicted with ${percent(probability)}` : "the first";
    button.setAttribute("aria-label", `token ${i + 1} of ${buttons.length}: ${visible(model.texts[model.tokens[i]])}, ${how}`);
    button.setAttribute("aria-checked", String(i === position));
    button.tabIndex = i === position ? 0 : -1;
  });
  return { element: el("div", { class: "chips", role: "radiogroup", "aria-label": `tokens of the text, ${model.name}` }, buttons), update };
}

/** The most likely next tokens, after the last layer. */
export function predictionPanel(model) {
  const sentence = el("p", { "aria-live": "polite" });
  const body = el("tbody");
  const element = el("div", {}, sentence, el("table", { class: "ranks" },
    el("thead", {}, el("tr", {}, head("rank"), head("token"), head("probability"), el("td"))), body));
  const update = ({ frame, position }) => {
    const last = model.nLayer;
    const before = model.tokens.slice(Math.max(0, position - 7), position + 1).map((id) => model.texts[id]).join("");
    const rows = range(frame.nTop).map((rank) => {
      const probability = frame.topProbability(last, position, rank);
      return row(rank + 1, model.texts[frame.topId(last, position, rank)], probability);
    });
    sentence.replaceChildren("After ", el("q", {}, position > 7 ? "…" : "", token(before)), " it predicts ",
      token(model.texts[frame.topId(last, position, 0)], "token strong"), ".");
    body.replaceChildren(...rows, following(model, frame, position) ?? "");
  };
  return { element, update };
}

/** The row of the token that comes next in the text, where it is not the last. */
function following(model, frame, position) {
  if (position + 1 >= model.tokens.length) return null;
  const rank = frame.nextRank(model.nLayer, position) + 1;
  const shown = row(rank, model.texts[model.tokens[position + 1]], frame.nextProbability(model.nLayer, position));
  shown.className = "following";
  shown.children[1].append(" ", el("span", { class: "dim" }, "comes next in the text"));
  return shown;
}

function row(rank, text, probability) {
  return el("tr", {}, el("td", {}, rank.toLocaleString("en")), el("td", {}, token(text)),
    el("td", { class: "number" }, percent(probability)), el("td", { class: "wide" }, bar(probability)));
}

function head(text) {
  return el("th", { scope: "col" }, text);
}

/** Gradient times input of every token up to the chosen one, and the check of its sum. */
export function whyPanel(model) {
  const element = el("div");
  const update = ({ frame, position }) => {
    const values = range(position + 1).map((i) => frame.attribution(position, i));
    const largest = Math.max(...values.map(Math.abs), 1e-30);
    const digits = digitsFor(largest);
    const chips = values.map((x, i) => {
      const chip = el("li", { class: "chip" }, token(model.texts[model.tokens[i]]),
        el("span", { class: "number" }, signed(x, digits)));
      tint(chip, x / largest);
      return chip;
    });
    const sum = values.reduce((total, x) => total + x, 0);
    element.replaceChildren(
      el("p", {}, "The logit of ", token(model.texts[frame.topId(model.nLayer, position, 0)], "token strong"), " is ",
        el("b", { class: "logit" }, frame.logit(position).toFixed(2)), "."),
      el("ul", { class: "chips" }, chips),
      el("p", { class: "check" }, "Check: these add up to ", el("b", { class: "sum" }, signed(sum, digits)),
        ". That must be the slope of the logit when all of these vectors grow together, and running the model with them ",
        "a little longer and shorter measures ", el("b", { class: "slope" }, signed(frame.slope(position), digits)),
        ". The sum would be the logit itself only if norms, attention and MLP were linear."));
  };
  return { element, update };
}

/** The first choice of every layer at every position, and the choices of the chosen layer. */
export function lensPanel(model, choose) {
  const layers = range(model.nLayer + 1);
  const cells = layers.map((layer) => model.tokens.map((_, position) =>
    el("td", { onclick: () => choose({ position, lensLayer: layer }) })));
  const table = el("table", { class: "lens" },
    el("thead", {}, el("tr", {}, head("layer"), model.tokens.map((id) => el("th", { scope: "col" }, token(model.texts[id]))))),
    el("tbody", {}, layers.map((layer) =>
      el("tr", {}, el("th", { scope: "row" }, layer), cells[layer]))));
  const scroller = el("div", { class: "scroll", tabIndex: 0, role: "region", "aria-label": `logit lens of ${model.name}` }, table);
  const detail = el("div", { class: "detail" });
  let drawn = null;
  let marked = null;
  const draw = (frame) => cells.forEach((line, layer) => line.forEach((cell, position) => {
    const probability = frame.topProbability(layer, position, 0);
    cell.replaceChildren(token(model.texts[frame.topId(layer, position, 0)]),
      el("span", { class: "hidden" }, ` ${percent(probability)}`));
    cell.title = percent(probability);
    tint(cell, probability);
  }));
  const update = ({ frame, position, lensLayer }) => {
    if (drawn !== frame) draw(frame);
    drawn = frame;
    marked?.removeAttribute("aria-current");
    marked = cells[lensLayer][position];
    marked.setAttribute("aria-current", "true");
    reveal(scroller, marked);
    detail.replaceChildren(lensDetail(model, frame, position, lensLayer));
  };
  return { element: el("div", {}, scroller, detail), update };
}

function lensDetail(model, frame, position, layer) {
  const choices = range(frame.nTop).map((rank) => el("li", {},
    token(model.texts[frame.topId(layer, position, rank)]),
    el("span", { class: "number" }, percent(frame.topProbability(layer, position, rank)))));
  const parts = [el("h3", {}, layer ? `After layer ${layer} of ${model.nLayer}, at ` : "In the embedding, at ",
    token(model.texts[model.tokens[position]])), el("ol", { class: "chips" }, choices)];
  if (position + 1 < model.tokens.length) {
    parts.push(el("p", { class: "dim" }, "The token that comes next, ", token(model.texts[model.tokens[position + 1]]),
      `, has ${percent(frame.nextProbability(layer, position))}, rank ${(frame.nextRank(layer, position) + 1).toLocaleString("en")}.`));
  }
  return el("div", {}, parts);
}

/** The norm of the residual stream after each layer, and of what was added to it. */
export function streamPanel(model) {
  const body = el("tbody");
  const element = el("div", { class: "scroll tall", tabIndex: 0, role: "region", "aria-label": `norms in ${model.name}` },
    el("table", { class: "norms" },
      el("thead", {}, el("tr", {}, head("layer"), head("attention added"), head("MLP added"), head("the stream after it"))), body));
  const update = ({ frame, position }) => {
    const norms = range(2 * model.nLayer + 1).map((i) => frame.streamNorm(i, position));
    const added = range(2 * model.nLayer).map((i) => frame.addedNorm(i, position));
    const largest = Math.max(...norms, ...added, 1e-30);
    const cell = (x, className) => el("td", {}, el("span", { class: "number" }, x.toFixed(2)), bar(x / largest, className));
    body.replaceChildren(...range(model.nLayer + 1).map((layer) => el("tr", {},
      el("th", { scope: "row" }, layer || "embedding"),
      layer ? [cell(added[2 * layer - 2], "bar-fill other"), cell(added[2 * layer - 1], "bar-fill other")] : [el("td"), el("td")],
      cell(norms[2 * layer], "bar-fill"))));
  };
  return { element, update };
}

/** The tokens nearest to the chosen one in the embedding. */
export function nearPanel(model) {
  const element = el("div");
  const update = ({ frame, position }) => {
    const chips = range(frame.nNear).map((rank) => el("li", { class: "chip plain" },
      token(model.texts[frame.nearId(position, rank)]),
      el("span", { class: "number" }, frame.nearCosine(position, rank).toFixed(3))));
    element.replaceChildren(el("p", {}, "Nearest to ", token(model.texts[model.tokens[position]], "token strong"), ":"),
      el("ol", { class: "chips" }, chips));
  };
  return { element, update };
}

/** For every step of a movie, what was predicted at the chosen position. */
export function trainingPanel(model, choose) {
  const body = el("tbody");
  const element = el("div", { class: "scroll tall", tabIndex: 0, role: "region", "aria-label": "the prediction at each step" },
    el("table", { class: "ranks" }, el("thead", {}, el("tr", {}, head("step"), head("first choice"), head("probability"),
      head("the next token of the text"), el("td"))), body));
  const update = ({ position, frameNumber }) => {
    const last = model.nLayer;
    const hasNext = position + 1 < model.tokens.length;
    body.replaceChildren(...model.frames.map((frame, number) => el("tr", {
      "aria-current": number === frameNumber ? "true" : null, onclick: () => choose({ frameNumber: number }),
    }, el("th", { scope: "row" }, frame.step.toLocaleString("en")), el("td", {}, token(model.texts[frame.topId(last, position, 0)])),
    el("td", { class: "number" }, percent(frame.topProbability(last, position, 0))),
    el("td", { class: "number" }, hasNext ? percent(frame.nextProbability(last, position)) : "–"),
    el("td", { class: "wide" }, bar(hasNext ? frame.nextProbability(last, position) : frame.topProbability(last, position, 0))))));
  };
  return { element, update };
}
