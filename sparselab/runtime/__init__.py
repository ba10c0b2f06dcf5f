"""The machine: memory, files, several processes."""
