// What all pages share: their data, elements, keys, the theme, numbers, and heat maps.

/** The data that build_page was given. */
export function pageData() {
  return JSON.parse(document.getElementById("data").textContent);
}

/** An element. Attributes: `class`, `on...` handlers, and properties or attributes by name; children become text. */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

/** A number with four significant digits. */
export function format(x) {
  if (typeof x === "boolean") return String(x);
  if (!Number.isFinite(x)) return Number.isNaN(x) ? "nan" : x > 0 ? "inf" : "-inf";
  if (Number.isInteger(x) && Math.abs(x) < 1e6) return String(x);
  const size = Math.abs(x);
  if (size >= 1e5 || size < 1e-4) return x.toExponential(3);
  return x.toPrecision(4);
}

/** A number of bytes, such as 1.5 MB. */
export function formatBytes(n) {
  const units = ["B", "kB", "MB", "GB"];
  let power = 0;
  while (n >= 1000 && power < 3) { n /= 1000; power += 1; }
  return `${power && n < 100 ? n.toPrecision(3) : Math.round(n)} ${units[power]}`;
}

/** A shape as Python writes it. */
export function formatShape(shape) {
  return `(${shape.join(", ")}${shape.length === 1 ? "," : ""})`;
}

/** The numbers of an array that `encode` of tensorgrad/inspect/arrays.py has written, in C order. */
export function decode(array) {
  const text = atob(array.base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i += 1) bytes[i] = text.charCodeAt(i);
  return array.type === "float64" ? new Float64Array(bytes.buffer) : new Float32Array(bytes.buffer);
}

/** Call `keys[event.key]` for a key that is pressed anywhere but in a control that uses the key itself. */
export function onKeys(keys) {
  document.addEventListener("keydown", (event) => {
    const busy = event.target.closest("input, select, textarea, [data-keys]");
    const isFree = event.target.type === "range" && event.key.length === 1; // a slider uses no letters
    if ((busy && !isFree) || event.ctrlKey || event.altKey || event.metaKey || !(event.key in keys)) return;
    event.preventDefault();
    keys[event.key](event);
  });
}

/** A button that changes between the light and the dark theme; "themechange" is sent to the document. */
export function themeButton() {
  const dark = () => getComputedStyle(document.documentElement).colorScheme === "dark";
  const button = el("button", { type: "button", onclick: () => {
    document.documentElement.dataset.theme = dark() ? "light" : "dark";
    show();
    document.dispatchEvent(new Event("themechange"));
  } });
  const show = () => { button.textContent = dark() ? "Light theme" : "Dark theme"; };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    show();
    document.dispatchEvent(new Event("themechange"));
  });
  show();
  return button;
}

/** The colours of the theme for negative numbers, zero and positive ones, as [red, green, blue]. */
function palette() {
  const style = getComputedStyle(document.documentElement);
  return ["--negative", "--zero", "--positive"].map((name) => {
    const hex = style.getPropertyValue(name).trim().slice(1);
    const six = hex.length === 3 ? [...hex].map((digit) => digit + digit).join("") : hex;
    return [0, 2, 4].map((i) => parseInt(six.slice(i, i + 2), 16));
  });
}

/** Draw numbers as one pixel each: zero is grey, and the largest absolute number has the full colour. */
export function paint(canvas, numbers, rows, columns, limit) {
  const [negative, zero, positive] = palette();
  canvas.width = Math.max(columns, 1);
  canvas.height = Math.max(rows, 1);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const image = context.createImageData(canvas.width, canvas.height);
  for (let i = 0; i < numbers.length; i += 1) {
    const x = numbers[i];
    const end = x < 0 ? negative : positive;
    const part = Number.isNaN(x) ? 0 : Math.min(Math.abs(x) / (limit || 1), 1);
    for (let j = 0; j < 3; j += 1) {
      image.data[4 * i + j] = Number.isNaN(x) ? [255, 0, 255][j] : Math.round(zero[j] + part * (end[j] - zero[j]));
    }
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

/** The largest absolute finite number. */
function largestOf(numbers) {
  let largest = 0;
  for (const x of numbers) if (Number.isFinite(x) && Math.abs(x) > largest) largest = Math.abs(x);
  return largest;
}

/** The index in the whole array, such as [0, 3, 7], of a row and a column of its matrix. */
export function indexOf(shape, row, column) {
  if (shape.length === 0) return [];
  const index = [column];
  for (let axis = shape.length - 2; axis >= 0; axis -= 1) {
    index.unshift(row % shape[axis]);
    row = Math.floor(row / shape[axis]);
  }
  return index;
}

/**
 * A heat map of what `heat_map` of tensorgrad/inspect/arrays.py returns.
 *
 * The number under the mouse, or at the cell that the arrow keys move, stands below it, and all of them in a table that
 * is made when it is opened. label: what a screen reader calls it. limit: of the colours, by default the largest number.
 * nameOf: returns the name of an index, or "".
 */
export function heatMap(map, label, { limit, cellSize, nameOf = () => "" } = {}) {
  const numbers = decode(map.values);
  const [rows, columns] = map.values.shape;
  const scale = limit ?? largestOf(numbers);
  const isBoolean = map.dtype === "bool";
  const at = (row, column) => {
    const value = numbers[row * columns + column];
    const index = indexOf(map.shape, map.rows ? map.rows[row] : row, map.columns ? map.columns[column] : column);
    return `[${index.join(", ")}]${nameOf(index)} = ${format(isBoolean ? Boolean(value) : value)}`;
  };
  const size = cellSize ?? Math.max(2, Math.min(18, Math.floor(256 / Math.max(rows, columns, 1))));
  const summary = `${label}: ${formatShape(map.shape)} ${map.dtype}, colours to ${format(scale)}`;
  const canvas = el("canvas", {
    role: "img", tabIndex: 0, "data-keys": "", "aria-label": `${summary}. Arrow keys read its elements.`,
  });
  const cell = el("output", { class: "cell" });
  let row = -1;
  let column = -1;
  const point = (newRow, newColumn) => {
    row = Math.max(0, Math.min(rows - 1, newRow));
    column = Math.max(0, Math.min(columns - 1, newColumn));
    if (numbers.length) cell.textContent = at(row, column);
  };
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    point(
      Math.floor(((event.clientY - box.top) / box.height) * rows),
      Math.floor(((event.clientX - box.left) / box.width) * columns),
    );
  });
  canvas.addEventListener("keydown", (event) => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!move) return;
    event.preventDefault();
    point(row + move[0], column + move[1]);
  });
  canvas.style.width = `${Math.max(columns, 1) * size}px`;
  canvas.style.height = `${Math.max(rows * size, 16)}px`;
  const draw = () => paint(canvas, numbers, rows, columns, scale);
  draw();
  const repaint = () => (canvas.isConnected ? draw() : document.removeEventListener("themechange", repaint));
  document.addEventListener("themechange", repaint);
  return el("figure", { class: "heatmap" },
    canvas, cell,
    el("div", { class: "scale", "aria-hidden": "true" }, format(-scale), el("i"), format(scale)),
    sampleNote(map), numbersTable(map, numbers, rows, columns));
}

/** A sentence that says which part of a large array is shown; null where all of it is. */
function sampleNote(map) {
  if (!map.rows && !map.columns) return null;
  const [rows, columns] = map.values.shape;
  const count = map.shape.reduce((product, n) => product * n, 1);
  return el("figcaption", {}, `A sample: ${rows} x ${columns} of ${count.toLocaleString("en")} elements, evenly spaced.`);
}

/** All numbers of a heat map as a table, made when it is opened. */
function numbersTable(map, numbers, rows, columns) {
  const table = el("div", { class: "numbers", tabIndex: 0, role: "region", "aria-label": "numbers", "data-keys": "" });
  const show = () => {
    if (table.firstChild) return;
    const name = (row) => indexOf(map.shape, map.rows ? map.rows[row] : row, 0).slice(0, -1).join(", ");
    const head = Array.from({ length: columns }, (_, i) => el("th", { scope: "col" }, map.columns ? map.columns[i] : i));
    const body = Array.from({ length: rows }, (_, row) => el("tr", {}, el("th", { scope: "row" }, name(row)),
      Array.from(numbers.subarray(row * columns, (row + 1) * columns), (x) =>
        el("td", {}, format(map.dtype === "bool" ? Boolean(x) : x)))));
    table.append(el("table", {}, el("thead", {}, el("tr", {}, el("td"), head)), el("tbody", {}, body)));
  };
  return el("details", { ontoggle: show }, el("summary", {}, "Numbers"), table);
}
