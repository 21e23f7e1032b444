"""Columns of a batch (many short texts and their hashes without a Python object each), and tables of fixed-size records that
lie in Redis; NumPy only, no connection.
"""
