"""How this project tests its notebooks."""
