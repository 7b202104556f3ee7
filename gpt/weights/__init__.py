"""Weights to begin with: GPT-2's published ones, or those of a checkpoint of ours."""
