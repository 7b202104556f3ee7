// Tokens and numbers as text: spaces and control characters made visible, probabilities, signed numbers.

import { el } from "../../../tensorgrad/inspect/static/base.js";

const NAMES = { " ": "␣", "\n": "↵", "\t": "⇥" };

/** The numbers 0 to n - 1. */
export function range(n) {
  return Array.from({ length: n }, (_, i) => i);
}

/** A token with its spaces and line breaks visible, and every other character that has no shape as its number. */
export function visible(text) {
  return text.replace(/[\s\p{C}]/gu, (character) =>
    NAMES[character] ?? `\\u{${character.codePointAt(0).toString(16)}}`);
}

/** A token as an element, whose direction of writing does not affect what stands beside it. */
export function token(text, className = "token") {
  return el("bdi", { class: className }, visible(text));
}

/** A probability in percent with one digit, or "<0.1 %". */
export function percent(probability) {
  return probability < 0.0005 ? "<0.1 %" : `${(100 * probability).toFixed(1)} %`;
}

/** Digits after the point that show three of the largest of some numbers, at least two. */
export function digitsFor(largest) {
  return Math.max(2, Math.min(6, 2 - Math.floor(Math.log10(largest || 1))));
}

/** A number with its sign. */
export function signed(x, digits) {
  const text = x.toFixed(digits);
  return Number(text) < 0 ? text.replace("-", "−") : `+${text.replace("-", "")}`;
}

/** A bar whose length is a part of 1, for the eye alone: the number stands beside it. */
export function bar(part, className = "bar-fill") {
  const fill = el("i", { class: className, "aria-hidden": "true" });
  fill.style.width = `${(100 * Math.max(0, Math.min(1, part))).toFixed(2)}%`;
  return el("span", { class: "bar-track", "aria-hidden": "true" }, fill);
}

/** Colour an element: strength from -1 to 1, or from 0 to 1. */
export function tint(element, strength) {
  element.style.setProperty("--strength", Math.min(1, Math.abs(strength)).toFixed(3));
  element.classList.toggle("negative", strength < 0);
}

/** Scroll a table that has headings, never the page, until an element in it is seen. */
export function reveal(scroller, element) {
  const heading = scroller.querySelector("th").getBoundingClientRect();
  const outer = scroller.getBoundingClientRect();
  const inner = element.getBoundingClientRect();
  const [top, left] = [outer.top + heading.height, outer.left + heading.width];
  if (inner.top < top) scroller.scrollTop -= top - inner.top;
  else if (inner.bottom > outer.bottom) scroller.scrollTop += inner.bottom - outer.bottom + 14;
  if (inner.left < left) scroller.scrollLeft -= left - inner.left;
  else if (inner.right > outer.right) scroller.scrollLeft += inner.right - outer.right + 14;
}
