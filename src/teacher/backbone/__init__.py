"""The frozen language model, and what is put around it: loading, quantisation, gated LoRA, gates, projector."""
