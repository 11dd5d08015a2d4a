"""The search: documents that describe spaces, the Optuna study that records it, Ray Tune that executes it."""
