"""What a model is worth: perplexity, zero-shot tasks, the numbers that papers printed."""
