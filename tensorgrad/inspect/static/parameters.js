// Why a parameter has its gradient: what `Explanation.data` of tensorgrad/inspect/explanation.py has found.
import { decode, el, format, formatShape, heatMap } from "./base.js";

const LR = 1e-3; // in the line that says what a step changes

const percent = (share) => `${(100 * share).toFixed(1)} %`;
const cells = (values) => values.map((value) => el("td", { class: "n" }, value));
const table = (head, body) => el("div", { class: "scroll" }, el("table", { class: "data" },
  el("thead", {}, el("tr", {}, head.map((text) => el("th", { scope: "col" }, text)))), el("tbody", {}, body)));

/** The text of the token of a row, such as " 'to'"; "" where the texts are not those of the rows. */
function textOf(texts, shape, row) {
  if (!texts || shape.length !== 2 || shape[0] !== texts.length || shape[1] !== texts[0].length) return "";
  return ` ${JSON.stringify(texts[row[0]][row[1]])}`;
}

function sizes(found) {
  const { norm, weight } = found;
  const of = (change) => (weight ? `${format(100 * change / weight)} %` : "a weight without a size");
  const rounding = found.rounding <= found.tolerance
    ? `${format(found.rounding)} of its norm from the gradient in float64; up to ${found.tolerance} is usual`
    : `The gradient in float64 is another: ${format(found.rounding)} of the norm away`;
  const facts = [
    ["gradient", `norm ${format(norm)}${weight ? `, ${format(norm / weight)} times the weight's, ${format(weight)}` : ""}`],
    [`a step of lr ${LR}`, `changes the weight by ${of(LR * norm)} with SGD, by ${of(LR * Math.sqrt(found.moved))} with Adam`],
    ["rounding", el("span", { class: found.rounding <= found.tolerance ? "" : "wrong" }, rounding)],
  ];
  if (found.cancels) facts.push(["cancels", "The contributions add up to less than 1 % of their norms."]);
  return el("dl", {}, facts.map(([name, shown]) => [el("dt", {}, name), el("dd", {}, shown)]));
}

function entries(found) {
  if (!found.entries.length) {
    return el("p", { class: "dim" }, "Not confirmed by finite differences, as the largest gradients are: ask for more when "
      + "the page is made, or use tg.explain.");
  }
  const head = ["largest elements", "", "gradient", "in float64", "finite difference", "relative error"];
  return table(head, found.entries.map((entry) => el("tr", {}, el("td", {}, `[${entry.index.join(", ")}]`),
    el("td", { class: entry.confirmed ? "" : "wrong" }, entry.confirmed ? "confirmed" : "wrong"),
    cells([entry.recorded, entry.float64, entry.difference, entry.error].map((x) => format(x ?? NaN))))));
}

function examples(use) {
  if (!use.examples.length) return null;
  return el("details", {}, el("summary", {}, `By example: ${use.examples.length}`),
    table(["example", "share", "norm"], use.examples.map(([share, norm], i) =>
      el("tr", {}, el("td", {}, String(i)), cells([percent(share), format(norm)])))));
}

/** The text, an example a line, each token in the colour of its share; null where there is no text or too much. */
function coloured(use, texts, limit) {
  if (!textOf(texts, use.rows.shape, [0, 0]) || use.rows.rows || use.rows.columns) return null;
  const shares = decode(use.rows.values);
  return texts.map((row, b) => el("p", { class: "tokens" }, row.map((text, t) => {
    const share = shares[b * row.length + t];
    const token = el("span", { title: `[${b}, ${t}] ${percent(share)}` }, text);
    const strength = Math.round(45 * Math.min(1, Math.abs(share) / (limit || 1)));
    token.style.background = `color-mix(in srgb, var(${share < 0 ? "--negative" : "--positive"}) ${strength}%, transparent)`;
    return token;
  })));
}

function positions(use, texts, limit) {
  if (!use.rows) return el("p", { class: "dim" }, "This op has no examples and positions, or mixes them.");
  const nameOf = (row) => textOf(texts, use.rows.shape, row);
  return [
    table([use.rows.shape.length === 2 ? "[example, position]" : "row", "share", "norm"], use.largest.map(([row, share, norm]) => el("tr", {},
      el("td", {}, `[${row.join(", ")}]${nameOf(row)}`), cells([percent(share), format(norm)])))),
    coloured(use, texts, limit), examples(use),
    heatMap(use.rows, `share of each ${use.rows.shape.length > 1 ? "example (row) and position (column)" : "row"}`,
      { nameOf, limit, cellSize: use.rows.values.shape[1] > 24 ? undefined : 18 }),
  ];
}

/** One parameter. place: (use) -> elements that say where the op stands and how its dy came from the loss. */
export function whyGradient(found, texts, place) {
  if (found.error) return [el("p", {}, found.error)];
  const limit = Math.max(...found.uses.map((use) => Math.abs(use.rows?.largest ?? 0)));
  return [
    el("p", { class: "dim" }, `${formatShape(found.shape)} ${found.dtype}`), sizes(found), entries(found),
    el("p", { class: "dim" }, "The gradient is a sum over the ops that used the parameter, and over examples and positions. "
      + "A share is how far a part reaches along the gradient: all add up to 100 %, and a negative one works against it."),
    el("div", { class: "uses" }, found.uses.map((use) => el("section", { class: "card" },
      el("h3", {}, `${percent(use.share)} through ${use.op}, as ${use.operand}: norm ${format(use.norm)}`),
      place(use), positions(use, texts, limit)))),
  ];
}
