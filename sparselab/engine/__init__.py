"""The engine: block by block through a model, in memory or from files."""
