"""Errors, paths, seeds, logging, metrics, checkpoints, timing and the one training loop: what every room stands on."""
