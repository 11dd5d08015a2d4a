"""One file a term of the distillation: its settings, its parts, its loss. A new file here is a new term."""
