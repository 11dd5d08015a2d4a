"""The objective `title_lm`: the language model is shown candidates and writes the title of the next item."""
