"""The commands: a thin module each. What they do lies below; what they share, in `src.cli` and `src.config`."""
