"""Files of model weights: their names, their index and their headers, read without torch."""
