"""Columns of a batch: many short texts and their hashes without a Python object each; NumPy only."""
