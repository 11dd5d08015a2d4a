"""The objective `item_ce`: an item head over the pooled state of the language model gives logits over the catalogue."""
