"""Looking at a computation: pages that show the tape step by step. Begin with `recording.py`."""
