"""Finds why a parameter has its gradient, from a recording and its replay in float64."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tensorgrad.backend import Array
from tensorgrad.inspect.contributions import contributions
from tensorgrad.inspect.explanation import CANCELS, Entry, Explanation, Place, Use, largest_of
from tensorgrad.inspect.replay import Part, Replay

if TYPE_CHECKING:
    from tensorgrad.inspect.recording import record

STEP = 1e-5  # of a finite difference, relative to the root mean square of the weight
# Of a recorded gradient beside float64's: what rounding alone can do in a deep model.
ROUNDING_TOLERANCE = {"float64": 1e-9, "float32": 1e-3, "float16": 5e-2, "bfloat16": 2e-1}


class Explainer:
    """Explains the gradients of a recording. Raises ValueError where its replay is not what was recorded."""

    def __init__(self, steps: "record") -> None:
        self.steps = steps
        self.replay = Replay(steps.program)
        self._senders = dict(_senders(steps.steps))
        texts, rows = (
            np.shape(steps.texts or []),
            {part.dy.shape[:-1] for part in self.replay.parts if part.dy is not None},
        )
        if steps.texts is not None and texts not in rows:
            known = ", ".join(map(str, sorted(rows)))
            raise ValueError(f"explain: texts are {texts}, but the rows of what used a parameter are {known}")
        for made, _ in steps.program.roots:
            row = steps.program.calls[made.call].row
            recorded = next(s for s in steps.steps if s["phase"] == "forward" and s["row"] == row)
            was = steps.arrays[recorded["results"][made.slot]]
            if was["notFinite"]:
                continue
            now = float(np.linalg.norm(self.replay.values[made.call][made.slot].data))
            if not abs(now - was["norm"]) <= ROUNDING_TOLERANCE.get(was["dtype"], 1e-3) * max(now, was["norm"]):
                rule = "record one step, without the optimizer's, of ops that give the same when they run again"
                raise ValueError(f"explain: the loss was {was['norm']:.6g}, and is {now:.6g} when replayed: {rule}")

    def explain(self, leaf: int, name: str, n_entries: int) -> Explanation:
        """Explain the gradient of a leaf, by its sequence number; finite differences of its n largest elements."""
        steps, weight = self.steps, self.replay.leaves[leaf].data
        recorded, parts = steps.gradients[leaf], [part for part in self.replay.parts if part.leaf == leaf]
        dtype = recorded.dtype.name
        recorded = np.asarray(recorded, np.float64)
        if not np.isfinite(recorded).all():
            raise ValueError(f"explain: the gradient of {name} is not finite: tg.detect_anomaly() finds the op")
        gradient: Any = sum((part.gradient for part in parts), np.zeros(weight.shape))
        uses = [self._use(part, step, gradient) for part, step in self._linked(leaf, parts, name)]
        size = float(np.linalg.norm(gradient))
        total = float(sum(use.norm if use.norms is None else use.norms.sum() for use in uses))
        scale = max(size, CANCELS * total)
        off = float(np.linalg.norm(recorded - gradient))
        floor = ROUNDING_TOLERANCE[dtype] * scale if scale > size else 0.0
        norm = float(np.linalg.norm(recorded))
        return Explanation(
            name, weight.shape, dtype, norm, float(np.linalg.norm(weight)), total, int(np.count_nonzero(recorded)),
            off / (scale or norm or 1.0), ROUNDING_TOLERANCE[dtype],
            list(self._entries(leaf, recorded, gradient, n_entries, dtype, floor)), uses, self.steps.texts,
        )  # fmt: skip

    def _linked(self, leaf: int, parts: list[Part], name: str) -> list[tuple[Part, int]]:
        """Each part with the step that sent it: both come in the order of backward."""
        sent = self.steps.sent_to[leaf]
        if len(sent) == len(parts):
            return list(zip(parts, sent, strict=True))
        # a fused op sends 0 where its composition sends nothing: for a result that was not used
        by_row = {self.steps.steps[step]["row"]: step for step, is_zero in sent.items() if not is_zero}
        if not by_row.keys() <= {part.row for part in parts}:
            counts = f"{len(sent)} ops sent a gradient to {name}, and {len(parts)} when replayed"
            raise ValueError(f"explain: {counts}: record all that the loss is computed from")
        return [(part, by_row[part.row]) for part in parts if part.row in by_row]

    def _entries(
        self, leaf: int, recorded: Array, gradient: Array, n: int, dtype: str, floor: float
    ) -> Iterator[Entry]:  # fmt: skip
        """Central differences of the elements that are largest as recorded."""
        weight: Any = self.replay.leaves[leaf].data
        finite = weight[np.isfinite(weight)]
        h = STEP * (float(np.linalg.norm(finite)) / max(finite.size, 1) ** 0.5 or 1.0)
        noise = 4 * float(np.finfo(np.float64).eps) * self.replay.size() / h
        for index in largest_of(recorded, n):
            ends, at = [], []
            for sign in (1, -1):
                moved = weight.copy()
                moved[index] += sign * h
                at.append(moved[index])
                ends.append(self.replay.objective(leaf, moved))
            with np.errstate(invalid="ignore"):
                difference = float(np.float64(ends[0] - ends[1]) / (at[0] - at[1]))
            rounding = ROUNDING_TOLERANCE[dtype] * abs(difference) + floor
            yield Entry(index, float(recorded[index]), float(gradient[index]), difference, noise, rounding)

    def _use(self, part: Part, step: int, gradient: Array) -> Use:
        square = float(np.sum(np.square(gradient))) or 1.0
        row = self.steps.rows[self.steps.steps[step]["row"]]
        caller = f"{row['caller']['file']}:{row['caller']['line']}" if row["caller"] else ""
        found = contributions(part)
        return Use(
            part.name if part.name == row["op"] else f"{part.name} of {row['op']}", part.operand_name, row["module"],
            caller, step, float(np.linalg.norm(part.gradient)),
            float(np.sum(part.gradient * gradient)) / square,
            None if found is None else found.products(gradient) / square, None if found is None else found.norms(),
            None if found is None or len(found.rows) < 2 else
            np.array([np.linalg.norm(found.gradient(b)) for b in range(found.rows[0])]),
            self._path(step),
        )  # fmt: skip

    def _path(self, step: int) -> list[Place]:
        """The places from the loss to a step, along the largest of the gradients that arrive at each."""
        path: list[Place] = []
        sent = None
        while True:
            row = self.steps.rows[self.steps.steps[step]["row"]]
            incoming = [self.steps.arrays[dy]["norm"] for dy in self.steps.steps[step]["incoming"] if dy is not None]
            arrives = max(incoming, default=0.0)
            leaves = arrives if sent is None else self.steps.arrays[sent["array"]]["norm"]
            path.insert(0, Place(step, row["op"], row["module"], arrives, leaves))
            senders = self._senders.get(step, [])
            if not senders:
                return path
            step, sent = max(senders, key=lambda found: self.steps.arrays[found[1]["array"]]["norm"])


def _senders(steps: list[dict[str, Any]]) -> Iterator[tuple[int, list[tuple[int, Any]]]]:
    """For each backward step, the steps whose gradients were added up to what arrives at it, and those gradients."""
    waiting: dict[int, list[tuple[int, Any]]] = {}
    for number, step in enumerate(steps):
        if step["phase"] == "backward":
            yield number, waiting.pop(step["row"], [])
            for sent in step["outgoing"]:
                if sent["to"] is not None:
                    waiting.setdefault(sent["to"], []).append((number, sent))
