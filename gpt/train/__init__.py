"""Training: `loop` is read first, then `step`; `run` says what a run is made of."""
