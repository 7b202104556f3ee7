// The stepper: a timeline and controls above, the graph of ops at the left, one step at the right.
import { el, format, formatBytes, formatShape, heatMap, onKeys, pageData, themeButton } from "./base.js";
import { growth, incomingSize, isPart, largestGradients, pathFromLoss, senders, sizeOf } from "./explain.js";
import { Graph, layerOf } from "./graph.js";
import { whyGradient } from "./parameters.js";

const recorded = pageData();
const { steps, rows, ops, arrays } = recorded;
const from = senders(recorded);
const find = (id) => document.getElementById(id);
const forwardOf = new Map();
const backwardOf = new Map();
steps.forEach((step, number) => (step.phase === "forward" ? forwardOf : backwardOf).set(step.row, number));
let current = 0;

const opOf = (step) => rows[step.row].op;
const inModule = (row) => (row.module ? ` in ${row.module}` : "");
const whereIs = (row) => inModule(row) || (row.caller ? `, called at ${row.caller.file}:${row.caller.line}` : "");
const title = (step) => `${opOf(step)}${inModule(rows[step.row])}`;
const jump = (number, text) => el("button", { type: "button", class: "link", onclick: () => {
  go(number);
  const { top } = find("detail").getBoundingClientRect();
  if (top < 0 || top > 0.8 * innerHeight) find("detail").scrollIntoView();
} }, text);
/** Text in which `names` stand as code. */
const code = (text) => text.split("`").map((part, i) => (i % 2 ? el("code", {}, part) : part));
const stepLink = (number) => jump(number, `step ${number + 1}, ${opOf(steps[number])}`);
const gradientName = (step, sent) => {
  const operand = forwardOf.has(step.row) ? steps[forwardOf.get(step.row)].operands[sent.operand] : undefined;
  return `d${operand?.name ?? "operand"}`;
};

const gradientOf = (sent) => (isPart(recorded, sent) ? "a part of the gradient of " : "the gradient of ");

// ---------------------------------------------------------------------------------------------- one step

/** Where an op stands, and the facts of one of its steps: [name, what is shown]. */
function facts(step, more) {
  const { module, caller } = rows[step.row];
  const found = [
    ["module", module || "none"], ["called at", caller ? el("code", {}, `${caller.file}:${caller.line}`) : "unknown"],
    ["line", caller?.text ? el("code", {}, caller.text) : null], ...more, ["memory held", memory(step)],
  ];
  return el("dl", {}, found.filter(([, shown]) => shown).map(([name, shown]) => [el("dt", {}, name), el("dd", {}, shown)]));
}

function memory(step) {
  const { values, gradients } = step.memory;
  return `${formatBytes(values + gradients)}: ${formatBytes(values)} of results and what is saved for backward, `
    + `${formatBytes(gradients)} of gradients`;
}

function source(op) {
  if (!op.source) return null;
  return el("details", { class: "source" }, el("summary", {}, `Source: ${op.place}`),
    el("pre", {}, op.source),
    op.kernels.length ? el("p", { class: "dim" }, "Its plain kernels, tensorgrad/backend/math.py:") : null,
    op.kernels.map((kernel) => el("pre", {}, kernel)));
}

function describe(array) {
  const map = arrays[array];
  const odd = map.notFinite ? `, ${map.notFinite} not finite` : "";
  const largest = map.largest === null ? "" : `, largest ${format(map.largest)} at [${map.at.join(", ")}]`;
  return `${formatShape(map.shape)} ${map.dtype}, norm ${format(map.norm)}${largest}${odd}`;
}

/** A card with a heat map; role: "operand", "result", "incoming", "outgoing" or "sum". */
function card(role, title, array, ...notes) {
  const isGradient = ["incoming", "outgoing", "sum"].includes(role);
  return el("div", { class: `card ${isGradient ? "gradient" : ""}`, "data-role": role, "data-array": String(array) },
    el("h4", {}, title), notes.map((note) => el("p", {}, note)), el("p", { class: "dim" }, describe(array)),
    heatMap(arrays[array], title));
}

function operandCard(operand) {
  const note = operand.row !== null ? ["made by ", stepLink(forwardOf.get(operand.row) ?? backwardOf.get(operand.row))]
    : operand.leaf ? [`parameter ${operand.leaf}`] : ["given"];
  if (operand.array === null) {
    return el("div", { class: "card", "data-role": "operand" }, el("h4", {}, operand.name), el("p", {}, operand.text));
  }
  return card("operand", operand.name, operand.array, el("span", {}, note));
}

function resultCards(step) {
  return step.results.map((array, i) => card("result", step.results.length > 1 ? `y[${i}]` : "y", array));
}

function forward(step) {
  const options = Object.entries(step.options).map(([name, value]) => `${name}=${value}`).join(", ");
  return [
    facts(step, [["options", options ? el("code", {}, options) : null]]),
    step.again ? el("p", {}, "Recomputed: backward runs a part of forward again.") : null,
    el("h3", {}, "Operands"), el("div", { class: "cards" }, step.operands.map(operandCard)),
    el("h3", {}, "Result"), el("div", { class: "cards" }, resultCards(step)),
  ];
}

function incomingCards(step, number) {
  const parts = from.get(number);
  return step.incoming.map((dy, slot) => {
    if (dy === null) return el("div", { class: "card" }, el("h4", {}, `dy[${slot}]`), el("p", {}, "not used: no gradient"));
    const mine = parts.filter((part) => part.sent.slot === slot);
    const origin = mine.length === 0 ? ["the gradient that backward was given"]
      : [mine.length === 1 ? "from " : `the sum of ${mine.length}: from `,
        ...mine.flatMap((part, i) => [i ? "; " : "", stepLink(part.step)])];
    return card("incoming", step.incoming.length > 1 ? `dy[${slot}]` : "dy", dy, el("span", {}, origin));
  });
}

function outgoingCards(step) {
  return step.outgoing.flatMap((sent) => {
    const to = sent.to !== null ? ["to ", stepLink(backwardOf.get(sent.to))]
      : [`${gradientOf(sent)}${sent.leaf ? `parameter ${sent.leaf}` : "a tensor that was given"}`, whyButton(sent.leaf)];
    const name = gradientName(step, sent);
    const cards = [card("outgoing", name, sent.array, el("span", {}, to), times(step, sent))];
    if (sent.sum !== undefined && sent.sum !== sent.array) {
      cards.push(card("sum", `${name}, added to what was there`, sent.sum, `the sum so far, of ${sent.leaf || "that tensor"}`));
    }
    return cards;
  });
}

/** How much larger what leaves is than what arrives. */
function times(step, sent) {
  const arrives = incomingSize(recorded, step);
  const leaves = sizeOf(recorded, sent.array);
  return arrives ? `norm ${format(leaves / arrives)} times that of dy` : "";
}

/** The norms of the operands and results of a step, [name, norm]; of those alone that a formula names, if one is given. */
function factors(step, formula = null) {
  const before = steps[forwardOf.get(step.row)];
  if (!before) return [];
  const isFloat = (x) => x.array !== null && arrays[x.array].dtype.includes("float");
  const found = before.operands.filter(isFloat).map((x) => [x.name, x.array]);
  before.results.forEach((array, i) => found.push([before.results.length > 1 ? `y[${i}]` : "y", array]));
  const words = formula === null ? null : new Set(formula.split("=").slice(1).join("=").match(/\w+/g) ?? []);
  return found.filter(([name]) => words === null || words.has(name)).map(([name, array]) => [name, sizeOf(recorded, array)]);
}

const listed = (sizes) => sizes.map(([name, size]) => `, ${name} ${format(size)}`).join("");

function backward(step, number) {
  const before = forwardOf.get(step.row);
  return [
    facts(step, [["norms", `dy ${format(incomingSize(recorded, step))}${listed(factors(step))}`]]),
    el("h3", {}, "Gradient that arrives"), el("div", { class: "cards" }, incomingCards(step, number)),
    el("h3", {}, "Gradients that it sends on"), el("div", { class: "cards" }, outgoingCards(step)),
    pathDetails(number),
    before === undefined ? null : [
      el("h3", {}, "What forward computed with"),
      el("p", {}, jump(before, `Forward of this op: step ${before + 1}`)),
      el("div", { class: "cards" }, steps[before].operands.map(operandCard), resultCards(steps[before])),
    ],
  ];
}

/** The way of a gradient from the loss, as a table that is made when it is opened. */
function pathDetails(number) {
  const path = pathFromLoss(recorded, from, number);
  if (path.length < 2) return null;
  const most = growth(path);
  const place = el("div", { class: "scroll" });
  const show = () => { if (!place.firstChild) place.append(pathTable(path, most)); };
  const places = most.map(({ step, factor }) => `${title(steps[step])} (${format(factor)} times)`).join(", ");
  const grew = places ? `grew most in ${places}` : "did not grow";
  return el("details", { class: "path", ontoggle: show },
    el("summary", {}, `How dy came here from the loss: through ${opCount(path)}; it ${grew}`), place);
}

/** How many ops are on a way from the loss. */
function opCount(path) {
  return path.length === 2 ? "1 op" : `${path.length - 1} ops`;
}

function pathTable(path, most) {
  const head = ["step", "op", "module", "norm that arrives", "times"].map((text) => el("th", { scope: "col" }, text));
  const body = path.map((place) => el("tr", { class: most.includes(place) ? "most" : "" },
    el("td", {}, jump(place.step, String(place.step + 1))), el("td", {}, opOf(steps[place.step])),
    el("td", {}, rows[steps[place.step].row].module), el("td", { class: "n" }, format(place.arrives)),
    el("td", { class: "n" }, place === path.at(-1) ? "" : format(place.factor))));
  return el("table", { class: "data" }, el("thead", {}, el("tr", {}, head)), el("tbody", {}, body));
}

function showStep(number) {
  const step = steps[number];
  const isForward = step.phase === "forward";
  const op = ops[opOf(step)];
  const formula = isForward ? op.forward : op.gradient || op.forward;
  find("detail").className = step.phase;
  find("detail").replaceChildren(
    el("h2", {}, el("span", { class: "direction" }, isForward ? "Forward" : "Backward"), ` of ${opOf(step)}`),
    formula ? el("p", { class: "formula" }, code(formula)) : "",
    ...(isForward ? forward(step) : backward(step, number)).flat().filter((x) => x !== null),
    source(op) ?? "");
}

// ---------------------------------------------------------------------------------------------- controls

const layerAt = (number) => `${layerOf(rows[steps[number].row])} ${steps[number].phase}`;

/** The next step, in one of the two directions, that is in another layer or of the other phase. */
function otherLayer(direction) {
  let number = current;
  while (number + direction >= 0 && number + direction < steps.length) {
    number += direction;
    if (layerAt(number) !== layerAt(current)) break;
  }
  return number;
}

function otherPhase() {
  const step = steps[current];
  return (step.phase === "forward" ? backwardOf : forwardOf).get(step.row) ?? current;
}

function go(number) {
  current = Math.max(0, Math.min(steps.length - 1, number));
  const step = steps[current];
  const name = `${step.phase} of ${title(step)}`;
  find("slider").value = String(current);
  find("slider").setAttribute("aria-valuetext", `step ${current + 1}, ${name}`);
  find("where").textContent = `Step ${current + 1} of ${steps.length}`;
  find("status").textContent = `Step ${current + 1}: ${name}`;
  find("other").textContent = step.phase === "forward" ? "Its backward" : "Its forward";
  find("other").disabled = otherPhase() === current;
  for (const id of ["first", "back"]) find(id).disabled = current === 0;
  for (const id of ["next", "layer", "last"]) find(id).disabled = current === steps.length - 1;
  const cursor = document.querySelector("#timeline .cursor");
  cursor.setAttribute("x1", current + 0.5);
  cursor.setAttribute("x2", current + 0.5);
  showStep(current);
  graph.show(current);
}

/** Memory as an area, and the norm of the largest gradient of each backward step as a bar, on a logarithmic scale. */
function drawTimeline(largest) {
  const height = 100;
  const svg = (tag, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  const peak = Math.max(1, ...steps.map((step) => step.memory.values + step.memory.gradients));
  const line = (size) => steps.flatMap((step, i) => [i, i + 1].map((x) => `${x},${height * (1 - size(step) / peak)}`));
  const area = (size) => `0,${height} ${line(size).join(" ")} ${steps.length},${height}`;
  const timeline = find("timeline");
  timeline.setAttribute("viewBox", `0 0 ${steps.length} ${height}`);
  timeline.setAttribute("aria-label", `Memory over all steps, at most ${formatBytes(peak)}, and the size of the gradients`);
  timeline.append(
    svg("polygon", { class: "gradients", points: area((step) => step.memory.values + step.memory.gradients) }),
    svg("polygon", { class: "values", points: area((step) => step.memory.values) }));
  const sizes = steps.map((step) => Math.max(0, ...(step.outgoing ?? []).map((sent) => sizeOf(recorded, sent.array))));
  const logs = sizes.filter((size) => size > 0).map(Math.log10);
  const [low, high] = [Math.min(...logs) - 0.2, Math.max(...logs)];
  sizes.forEach((size, i) => {
    if (size <= 0) return;
    const share = height * 0.9 * (Math.log10(size) - low) / (high - low || 1);
    const kind = i === largest?.step ? "bar most" : "bar";
    timeline.append(svg("rect", { class: kind, x: i + 0.1, width: 0.8, y: height - share, height: share }));
  });
  timeline.append(svg("line", { class: "cursor", y1: 0, y2: height }));
  timeline.addEventListener("click", (event) => {
    const box = timeline.getBoundingClientRect();
    go(Math.floor(((event.clientX - box.left) / box.width) * steps.length));
  });
}

// ---------------------------------------------------------------------------------------------- a parameter's gradient

const gradients = recorded.gradients;

/** Where an op stands that used a parameter, and the way of the gradient from the loss. */
function placeOf(use) {
  const { module, caller } = rows[steps[use.step].row];
  return [
    el("p", {}, jump(use.step, `step ${use.step + 1}`), module ? ` in ${module}` : "",
      caller ? [", called at ", el("code", {}, `${caller.file}:${caller.line}`)] : ""),
    pathDetails(use.step),
  ];
}

function showParameter() {
  const found = gradients.found[find("parameter").selectedIndex];
  find("why").replaceChildren(
    ...(found ? whyGradient(found, gradients.texts, placeOf) : [el("p", {}, "No parameter got a gradient.")]));
}

/** A button that opens the explanation of a parameter's gradient. */
function whyButton(name) {
  const number = gradients.found.findIndex((found) => found.name === name);
  if (number < 0) return "";
  return [" ", el("button", { type: "button", class: "link", onclick: () => {
    find("parameter").selectedIndex = number;
    find("parameters").open = true;
    showParameter();
    find("parameters").scrollIntoView();
    find("parameter").focus();
  } }, "why?")];
}

// ---------------------------------------------------------------------------------------------- the summary

const owner = (sent) => (sent.to === null && sent.leaf ? [`, ${gradientOf(sent)}${sent.leaf}`, whyButton(sent.leaf)] : "");

/** The part of a formula that says what one gradient is, such as "dweight = dy^T x" of "dx = dy weight, dweight = dy^T x". */
function clauseOf(formula, name) {
  const clauses = formula.split(/(?<=[,.;])\s+(?:and\s+)?(?=d\w+ = )/);
  const mine = clauses.find((clause) => clause.startsWith(`${name} = `)) ?? formula;
  return mine.replace(/[,.;]\s*$/, "");
}

/** The answer to the question in the heading, whose numbers are those of the page. */
function answer(largest) {
  if (!largest) return el("p", {}, "No backward was recorded: call backward inside the context.");
  const { step: number, sent, size } = largest;
  const step = steps[number];
  const name = gradientName(step, sent);
  const arrives = incomingSize(recorded, step);
  const formula = clauseOf(ops[opOf(step)].gradient, name);
  const path = pathFromLoss(recorded, from, number);
  return el("dl", {},
    el("dt", {}, "which"), el("dd", {}, el("b", {}, opOf(step)), whereIs(rows[step.row]), ", whose backward is ",
      jump(number, `step ${number + 1}`), `: it made ${name}`, owner(sent), ", with norm ", el("b", {}, format(size)), "."),
    el("dt", {}, "why here"), el("dd", {}, formula ? [el("b", {}, code(formula)), ", where "] : "",
      `dy, the gradient that arrives, has norm ${format(arrives)}`,
      factors(step, formula).map(([factor, norm]) => `; ${factor} has norm ${format(norm)}`), ". ",
      `The norm of ${name} is ${format(size / (arrives || 1))} times that of dy.`),
    path.length < 2 ? null : [el("dt", {}, "why dy"), el("dd", {},
      `It came from the loss through ${opCount(path)}, and `,
      growth(path).length ? "grew most in the backward of " : "did not grow on the way",
      growth(path).flatMap((place, i) => [i ? "; of " : "", `${title(steps[place.step])}, `,
        jump(place.step, `step ${place.step + 1}`), `: ${format(place.factor)} times`]), ".")]);
}

function showRanking() {
  const measure = find("measure").value;
  const head = ["step", "op", "module", "gradient", "of", measure === "norm" ? "norm" : "largest element", "times dy's norm"];
  const body = largestGradients(recorded, measure).slice(0, 10).map(({ step, sent, size }) => el("tr", {},
    el("td", {}, jump(step, String(step + 1))), el("td", {}, opOf(steps[step])),
    el("td", {}, rows[steps[step].row].module), el("td", {}, gradientName(steps[step], sent)),
    el("td", {}, sent.to === null ? sent.leaf || "a given tensor" : `the result of ${rows[sent.to].op}`),
    el("td", { class: "n" }, format(size)),
    el("td", { class: "n" }, format(sizeOf(recorded, sent.array) / (incomingSize(recorded, steps[step]) || 1)))));
  find("ranking").className = "data";
  find("ranking").replaceChildren(el("thead", {}, el("tr", {}, head.map((text) => el("th", { scope: "col" }, text)))),
    el("tbody", {}, body));
}

function summary() {
  const nBackward = steps.filter((step) => step.phase === "backward").length;
  const peak = Math.max(0, ...steps.map((step) => step.memory.values + step.memory.gradients));
  const root = steps.findIndex((step, number) => step.phase === "backward" && from.get(number).length === 0);
  const result = steps[forwardOf.get(steps[root]?.row)]?.results[0];
  const loss = result !== undefined && arrays[result].shape.length === 0
    ? `Backward begins at the result of ${opOf(steps[root])}, ${format(arrays[result].largest)}. ` : "";
  return `${steps.length - nBackward} ops forward, ${nBackward} backward; at most ${formatBytes(peak)} held. ${loss}`
    + "The bars show the size of the gradients that each step made, the area behind them the memory held.";
}

find("title").textContent = recorded.title;
find("theme").append(themeButton());
find("summary").textContent = steps.length ? summary() : "Nothing was recorded.";
const largest = largestGradients(recorded, "norm")[0];
find("answer").replaceChildren(answer(largest));
const gradientSizes = new Map([...backwardOf].map(([row, number]) =>
  [row, Math.max(0, ...steps[number].outgoing.map((sent) => sizeOf(recorded, sent.array)))]));
const graph = new Graph(recorded, find("rows"), document.querySelector(".arcs"), gradientSizes,
  (row, backwards) => go((backwards ? backwardOf : forwardOf).get(row) ?? backwardOf.get(row)));

if (steps.length) {
  drawTimeline(largest);
  showRanking();
  find("slider").max = String(steps.length - 1);
  find("slider").addEventListener("input", () => go(Number(find("slider").value)));
  find("measure").addEventListener("change", showRanking);
  find("parameter").append(...gradients.found.map(({ name, norm }) =>
    el("option", {}, norm === undefined ? name : `${name}, norm ${format(norm)}`)));
  find("parameter").addEventListener("change", showParameter);
  find("parameters").addEventListener("toggle", () => { if (!find("why").firstChild) showParameter(); });
  let isFolded = graph.isFolded;
  const fold = find("fold");
  fold.textContent = isFolded ? "Unfold all" : "Fold all";
  fold.addEventListener("click", () => {
    isFolded = !isFolded;
    graph.setOpen(!isFolded);
    fold.textContent = isFolded ? "Unfold all" : "Fold all";
  });
  const actions = {
    first: () => go(0), back: () => go(current - 1), next: () => go(current + 1), layer: () => go(otherLayer(1)),
    other: () => go(otherPhase()), last: () => go(steps.length - 1),
  };
  for (const [id, action] of Object.entries(actions)) find(id).addEventListener("click", action);
  onKeys({
    ArrowLeft: actions.back, ArrowRight: actions.next, Home: actions.first, End: actions.last, n: actions.layer,
    N: actions.layer, p: () => go(otherLayer(-1)), P: () => go(otherLayer(-1)), b: actions.other, B: actions.other,
  });
  go(0);
}
