"""Pages about a model: its step, op by op, and what it computes for a prompt. tensorgrad/inspect/ builds them."""
