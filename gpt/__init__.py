"""A GPT on tensorgrad: tokenizers, data, the model, training and generation."""

# `python -m gpt compare`, as it was called before the module moved into gpt/evaluate/, still finds it there.
__path__.append(f"{__path__[0]}/evaluate")
