"""How many zeros each block gets: by outliers (OWL), or by how much the loss rises."""
