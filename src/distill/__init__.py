"""DLLM2Rec: the teacher's outputs aligned with training examples, the losses, the selection policies, the training."""
