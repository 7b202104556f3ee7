// The graph: ops in the order in which they ran, in modules that fold, and arcs from each op to those that use its result.
import { el, formatShape } from "./base.js";

const ARC_WIDTH = 44;
const MANY_ROWS = 60; // more than these begin folded

/** "h.0.attn" -> ["h.0", "attn"]: a number belongs to the name of the list before it. */
export function modulePath(module) {
  const parts = [];
  for (const part of module.split(".")) {
    if (/^\d+$/.test(part) && /^\D+$/.test(parts.at(-1) ?? "")) parts[parts.length - 1] += `.${part}`;
    else if (part) parts.push(part);
  }
  return parts;
}

/** The layer of an op: the outermost module that it belongs to. */
export function layerOf(row) {
  return modulePath(row.module)[0] ?? "";
}

/** The graph of what was recorded, in `place`; `choose(row, backward)` is called for the op that is clicked. */
export class Graph {
  constructor(recorded, place, arcs, gradientSizes, choose) {
    this.recorded = recorded;
    this.arcs = arcs;
    this.rows = [];
    this.groups = [];
    this.isFolded = recorded.rows.length > MANY_ROWS;
    this.opened = []; // the groups that show() has opened, and closes again
    this.edges = recorded.steps.flatMap((step) => (step.phase !== "forward" ? [] :
      step.operands.filter((x) => x.row !== null).map((x) => [x.row, step.row])));
    this.forward = new Map(recorded.steps.map((step) => [step.row, step]).filter(([, step]) => step.phase === "forward"));
    const sizes = [...gradientSizes.values()].filter((size) => size > 0).map(Math.log10);
    const [low, high] = [Math.min(...sizes) - 0.2, Math.max(...sizes)];
    let path = [];
    let inside = [place];
    recorded.rows.forEach((row, number) => {
      const parts = modulePath(row.module);
      let same = 0;
      while (same < parts.length && parts[same] === path[same]) same += 1;
      inside = inside.slice(0, same + 1);
      for (const part of parts.slice(same)) inside.push(this.addGroup(inside.at(-1), part));
      path = parts;
      const size = gradientSizes.get(number);
      const share = size > 0 ? (Math.log10(size) - low) / (high - low || 1) : 0;
      const bar = el("i", {});
      bar.style.width = `${Math.round(100 * share)}%`;
      const line = el("div", { class: "row" },
        el("button", { type: "button", class: "op", onclick: () => choose(number, false) },
          row.op, el("span", { class: "shape" }, this.shapeOf(number))),
        size === undefined ? null : el("button", {
          type: "button", class: "grad", "aria-label": `backward of ${row.op}`, onclick: () => choose(number, true),
        }, "\u2202"),
        size === undefined ? null : el("span", { class: "bar", "aria-hidden": "true" }, bar));
      inside.at(-1).append(line);
      this.rows.push(line);
    });
    for (const group of this.groups) this.count(group);
    this.around = this.rows.map((line) => this.groups.filter((group) => group.contains(line))); // the outermost first
    [this.faint, this.out, this.in] = ["", "out", "in"].map((kind) => this.addPath(kind));
    this.measure();
    this.drawArcs();
    new ResizeObserver(() => this.layoutChanged()).observe(place);
  }

  addGroup(parent, name) {
    const group = el("details", { open: !this.isFolded, ontoggle: () => this.layoutChanged() }, el("summary", {}, name));
    parent.append(group);
    this.groups.push(group);
    return group;
  }

  addPath(kind) {
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("class", kind);
    this.arcs.append(path);
    return path;
  }

  count(group) {
    const n = group.querySelectorAll(".row").length;
    group.firstChild.append(el("span", { class: "dim" }, ` \u00b7 ${n} op${n === 1 ? "" : "s"}`));
  }

  shapeOf(number) {
    const results = this.forward.get(number)?.results ?? [];
    return results.map((array) => formatShape(this.recorded.arrays[array].shape)).join(" ");
  }

  /** Mark what has run after a step, open the modules of its op, and close those that were opened for the last one. */
  show(number) {
    const step = this.recorded.steps[number];
    const isDone = new Set();
    const isReturned = new Set();
    for (let i = 0; i <= number; i += 1) {
      (this.recorded.steps[i].phase === "forward" ? isDone : isReturned).add(this.recorded.steps[i].row);
    }
    this.rows.forEach((line, i) => {
      line.classList.toggle("done", isDone.has(i) || isReturned.has(i));
      line.classList.toggle("returned", isReturned.has(i));
      line.classList.toggle("current", i === step.row);
      line.classList.toggle("backward", i === step.row && step.phase === "backward");
      if (i === step.row) line.firstChild.setAttribute("aria-current", "step");
      else line.firstChild.removeAttribute("aria-current");
    });
    const around = this.around[step.row];
    const open = new Set(this.groups.filter((group) => group.open));
    for (const group of this.opened) if (!around.includes(group)) group.open = false;
    this.opened = around.filter((group) => !group.open || this.opened.includes(group));
    for (const group of around) group.open = true;
    for (const group of this.groups) group.firstChild.classList.toggle("holds", around.includes(group));
    this.current = step.row;
    if (this.groups.some((group) => group.open !== open.has(group))) this.layoutChanged();
    else this.drawCurrent();
    const pane = this.arcs.closest("section");
    const line = this.rows[step.row].getBoundingClientRect();
    const box = pane.getBoundingClientRect();
    if (line.top < box.top + 30 || line.bottom > box.bottom - 30) {
      pane.scrollTop += line.top - box.top - box.height / 2;
    }
  }

  /** Fold or unfold every module. */
  setOpen(open) {
    for (const group of this.groups) group.open = open;
    this.opened = [];
  }

  /** Draw the arcs once, before the next frame, however often the layout changes until then. */
  layoutChanged() {
    if (this.isWaiting) return;
    this.isWaiting = true;
    requestAnimationFrame(() => {
      this.isWaiting = false;
      this.measure();
      this.drawArcs();
    });
  }

  /** The middle of every row, or of the outermost folded module around it. */
  measure() {
    const top = this.arcs.parentElement.getBoundingClientRect().top;
    const middles = new Map();
    const middle = (element) => {
      if (!middles.has(element)) {
        const box = element.getBoundingClientRect();
        middles.set(element, box.top + box.height / 2 - top);
      }
      return middles.get(element);
    };
    this.middles = this.rows.map((line, number) => {
      const folded = this.around[number].find((group) => !group.open);
      return middle(folded ? folded.firstChild : line);
    });
  }

  pathOf([from, to]) {
    const [start, end] = [this.middles[from], this.middles[to]];
    if (Math.abs(end - start) < 1) return "";
    const reach = ARC_WIDTH - Math.min(ARC_WIDTH - 2, 3 + 6 * Math.log2(1 + Math.abs(end - start) / 25));
    return `M${ARC_WIDTH},${start} C${reach},${start} ${reach},${end} ${ARC_WIDTH},${end}`;
  }

  drawArcs() {
    this.faint.setAttribute("d", this.edges.map((edge) => this.pathOf(edge)).join(""));
    this.drawCurrent();
  }

  /** The arcs of the current op: from its operands, and to where its result is used. */
  drawCurrent() {
    const path = (end) => this.edges.filter((edge) => edge[end] === this.current).map((edge) => this.pathOf(edge)).join("");
    this.in.setAttribute("d", path(1));
    this.out.setAttribute("d", path(0));
  }
}
