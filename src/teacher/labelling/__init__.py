"""Labels of training examples: which rows are asked about, what a teacher says about them, and what was paid for."""
