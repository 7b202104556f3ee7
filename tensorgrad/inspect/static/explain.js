// Which gradients are large, and how they came to be: functions of the recorded data alone.

/** The size of an array by a measure: its norm, or its largest absolute element. */
export function sizeOf(recorded, number, measure = "norm") {
  const map = recorded.arrays[number];
  return Math.abs(map[measure] ?? 0);
}

/** Whether a gradient is an incoming one that was only passed on, as by reshape or by add. */
function isPassedOn(recorded, step, sent) {
  return step.incoming.some((dy) => dy !== null && ["norm", "largest"].every((measure) => {
    const [a, b] = [sizeOf(recorded, dy, measure), sizeOf(recorded, sent.array, measure)];
    return Math.abs(a - b) <= 1e-6 * Math.max(a, b);
  }));
}

/** Whether what was sent to a parameter is only a part of its gradient: several ops used it, as where weights are shared. */
export function isPart(recorded, { leaf }) {
  const all = recorded.steps.flatMap((step) => step.outgoing ?? []);
  return Boolean(leaf) && all.filter((sent) => sent.to === null && sent.leaf === leaf).length > 1;
}

/** Every gradient that an op made, the largest first: {step: number of the step, sent, size}. */
export function largestGradients(recorded, measure) {
  const all = recorded.steps.flatMap((step, number) => (step.phase === "backward" ? step.outgoing : [])
    .filter((sent) => !isPassedOn(recorded, step, sent))
    .map((sent) => ({ step: number, sent, size: sizeOf(recorded, sent.array, measure) })));
  return all.sort((a, b) => b.size - a.size || a.step - b.step);
}

/** The size of what arrives at a step: that of the largest of its incoming gradients. */
export function incomingSize(recorded, step) {
  return Math.max(0, ...step.incoming.map((dy) => (dy === null ? 0 : sizeOf(recorded, dy))));
}

/** For each backward step, the gradients that were added up to what arrives at it: lists of {step, sent}. */
export function senders(recorded) {
  const waiting = new Map();
  const found = new Map();
  recorded.steps.forEach((step, number) => {
    if (step.phase !== "backward") return;
    found.set(number, waiting.get(step.row) ?? []);
    waiting.delete(step.row);
    for (const sent of step.outgoing) {
      if (sent.to === null) continue;
      if (!waiting.has(sent.to)) waiting.set(sent.to, []);
      waiting.get(sent.to).push({ step: number, sent });
    }
  });
  return found;
}

/**
 * The steps from the loss to a step, along the largest of the gradients that arrive at each, the loss first.
 *
 * Of each: its step, what arrives there, and by what factor what it sends on is larger.
 */
export function pathFromLoss(recorded, from, number, last) {
  const path = [];
  let sent = last;
  for (let at = number; at !== undefined;) {
    const step = recorded.steps[at];
    const arrives = incomingSize(recorded, step);
    const leaves = sent ? sizeOf(recorded, sent.array) : arrives;
    path.unshift({ step: at, arrives, leaves, factor: arrives ? leaves / arrives : 1, sent });
    const parts = [...from.get(at)].sort((a, b) => sizeOf(recorded, b.sent.array) - sizeOf(recorded, a.sent.array));
    sent = parts[0]?.sent;
    at = parts[0]?.step;
  }
  return path;
}

/** The places on a path, before its last, where the gradient grew most: at most three that doubled it, or the largest, if any. */
export function growth(path) {
  const inside = path.slice(0, -1).filter((place) => place.factor > 1).sort((a, b) => b.factor - a.factor);
  const doubled = inside.filter((place) => place.factor > 2).slice(0, 3);
  return (doubled.length ? doubled : inside.slice(0, 1)).sort((a, b) => a.step - b.step);
}
