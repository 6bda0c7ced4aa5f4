"""How much memory a model needs, from the headers of its files: no model code, and no torch."""
