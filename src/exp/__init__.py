"""Entry points. The only room that sees Hydra; everything below gets frozen settings."""
