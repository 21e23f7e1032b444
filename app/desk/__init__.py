"""The desk: leads and their deadlines, rollups, reconciliation, return. Reads the output topics, weakens no count."""
