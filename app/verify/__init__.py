"""Recomputes what onecount published, slowly and independently, and names every difference.

`oracle` is docs/counting.md in plain Python; `compare` reads the topics and holds the two answers side by side.
Nothing here imports a stage or the engine, so that a mistake of theirs cannot be repeated here.
"""
