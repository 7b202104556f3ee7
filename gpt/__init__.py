"""A GPT on tensorgrad: tokenizers, data, the model, training and generation."""
