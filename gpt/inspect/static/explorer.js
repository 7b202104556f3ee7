// The explorer: what was chosen, the keys, and the panels of one model, of two, or of the steps of a run.

import { decode, el, onKeys, pageData, themeButton } from "../../../tensorgrad/inspect/static/base.js";
import { attentionPanel } from "./attention.js";
import { lensPanel, nearPanel, predictionPanel, streamPanel, textPanel, trainingPanel, whyPanel } from "./panels.js";

const PANELS = {
  text: textPanel, prediction: predictionPanel, training: trainingPanel, why: whyPanel, lens: lensPanel,
  attention: attentionPanel, stream: streamPanel, near: nearPanel,
};
const FRAME_MS = 700;

/** The arrays of one frame, by what they are of. */
class Frame {
  constructor(data, nHead) {
    const arrays = Object.fromEntries(Object.entries(data).filter(([name]) => name !== "step")
      .map(([name, array]) => [name, decode(array)]));
    const n = data.attention.shape[2];
    this.step = data.step;
    this.nTop = data.top_ids.shape[2];
    this.nNear = data.neighbour_ids.shape[1];
    this.topId = (layer, position, rank) => arrays.top_ids[(layer * n + position) * this.nTop + rank];
    this.topProbability = (layer, position, rank) => arrays.top_probabilities[(layer * n + position) * this.nTop + rank];
    this.nextProbability = (layer, position) => arrays.next_probability[layer * (n - 1) + position];
    this.nextRank = (layer, position) => arrays.next_rank[layer * (n - 1) + position];
    this.logit = (position) => arrays.logit[position];
    this.head = (layer, head) => arrays.attention.subarray((layer * nHead + head) * n * n, (layer * nHead + head + 1) * n * n);
    this.attribution = (position, input) => arrays.attribution[position * n + input];
    this.slope = (position) => arrays.slope[position];
    this.streamNorm = (i, position) => arrays.stream_norms[i * n + position];
    this.addedNorm = (i, position) => arrays.added_norms[i * n + position];
    this.nearId = (position, rank) => arrays.neighbour_ids[position * this.nNear + rank];
    this.nearCosine = (position, rank) => arrays.neighbour_cosines[position * this.nNear + rank];
  }
}

const models = pageData().models.map((model) => ({
  ...model, frames: model.frames.map((frame) => new Frame(frame, model.nHead)),
}));
const isMovie = models[0].frames.length > 1;
const deepest = Math.max(...models.map((model) => model.nLayer));
const widest = Math.max(...models.map((model) => model.nHead));
// layer counts from 0 among the blocks; lensLayer from 0 for the embedding
const chosen = {
  positions: models.map((model) => model.tokens.length - 1), layer: deepest - 1, head: 0, lensLayer: deepest,
  frameNumber: models[0].frames.length - 1,
};
const panels = []; // [model's number, panel]
let playing = null;

/** Choose something, and show it. */
function choose(changes, from = 0) {
  const { position, ...others } = changes;
  Object.assign(chosen, others);
  if ("lensLayer" in others && others.lensLayer) chosen.layer = others.lensLayer - 1;
  else if ("layer" in others) chosen.lensLayer = others.layer + 1;
  if (position !== undefined) {
    const end = models[from].ends[position];
    chosen.positions = models.map((model, i) => {
      const covering = model.ends.findIndex((other) => other >= end);
      return i === from ? position : covering < 0 ? model.tokens.length - 1 : covering;
    });
  }
  update();
}

function update() {
  for (const [number, panel] of panels) {
    const model = models[number];
    panel.update({
      model, frame: model.frames[chosen.frameNumber], frameNumber: chosen.frameNumber, position: chosen.positions[number],
      layer: Math.min(chosen.layer, model.nLayer - 1), head: Math.min(chosen.head, model.nHead - 1),
      lensLayer: Math.min(chosen.lensLayer, model.nLayer),
    });
  }
  showStep();
}

/** A token further; the focus follows where it is on the tokens. */
function moveToken(by) {
  const focused = document.activeElement?.closest("[role=radiogroup]");
  const from = focused ? [...document.querySelectorAll("[role=radiogroup]")].indexOf(focused) : 0;
  choose({ position: clamp(chosen.positions[from] + by, models[from].tokens.length - 1) }, from);
  focused?.querySelector("[aria-checked=true]").focus();
}

function clamp(x, largest) {
  return Math.max(0, Math.min(largest, x));
}

function describe(model) {
  const number = (x) => x.toLocaleString("en");
  return `${model.kind}, ${number(model.parameters)} parameters, ${model.nLayer} layers, ${model.nHead} heads, ` +
    `width ${model.width}, vocabulary ${number(model.vocabulary)}`;
}

let showStep = () => {};

/** The slider of a movie, and its button. */
function movieControls() {
  const { frames } = models[0];
  const slider = el("input", { type: "range", min: "0", max: String(frames.length - 1), id: "step", "aria-label": "step of training",
    oninput: () => choose({ frameNumber: Number(slider.value) }) });
  const label = el("output", { class: "step", for: "step" });
  const play = el("button", { type: "button", id: "play", onclick: togglePlay });
  showStep = () => {
    const { step } = frames[chosen.frameNumber];
    slider.value = String(chosen.frameNumber);
    slider.setAttribute("aria-valuetext", `step ${step}`);
    label.textContent = `step ${step.toLocaleString("en")}`;
    play.textContent = playing ? "Pause" : "Play";
  };
  for (const id of ["movie-keys", "movie-play", "training-section"]) document.getElementById(id).hidden = false;
  return [play, slider, label];
}

function togglePlay() {
  const last = models[0].frames.length - 1;
  const stop = () => { clearInterval(playing); playing = null; };
  if (playing) stop();
  else {
    if (chosen.frameNumber === last) chosen.frameNumber = 0;
    playing = setInterval(() => {
      if (chosen.frameNumber + 1 >= last) stop();
      choose({ frameNumber: clamp(chosen.frameNumber + 1, last) });
    }, FRAME_MS);
  }
  update();
}

function build() {
  document.getElementById("title").textContent = document.title;
  document.getElementById("bar").append(...(isMovie ? movieControls() : []), themeButton());
  document.getElementById("main").classList.toggle("two", models.length > 1);
  for (const [id, make] of Object.entries(PANELS)) {
    if (id === "training" && !isMovie) continue;
    models.forEach((model, number) => {
      const panel = make(model, (changes) => choose(changes, number));
      panels.push([number, panel]);
      const about = id === "text" ? el("p", { class: "about" }, el("b", {}, model.name), ` ${describe(model)}`) : null;
      const name = models.length > 1 && !about ? el("h3", { class: "name" }, model.name) : null;
      document.getElementById(id).append(el("div", { class: "model" }, about, name, panel.element));
    });
  }
  const layer = (by) => choose({ lensLayer: clamp(chosen.lensLayer + by, deepest) });
  const head = (by) => choose({ head: clamp(chosen.head + by, widest - 1) });
  const frame = (by) => choose({ frameNumber: clamp(chosen.frameNumber + by, models[0].frames.length - 1) });
  onKeys({
    ArrowLeft: () => moveToken(-1), ArrowRight: () => moveToken(1), l: () => layer(1), L: () => layer(-1),
    h: () => head(1), H: () => head(-1), ...(isMovie ? { s: () => frame(1), S: () => frame(-1), p: togglePlay } : {}),
  });
  update();
}

build();
