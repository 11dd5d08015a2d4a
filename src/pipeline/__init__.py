"""The stages of an experiment with their cache, and what a run leaves in `result/`."""
