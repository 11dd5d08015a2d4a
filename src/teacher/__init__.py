"""iLoRA: prompts, gated adapters, the teacher's training, and the labelling of training examples."""
