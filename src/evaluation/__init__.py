"""Comparisons between models on the same examples, and the tables that show them."""
