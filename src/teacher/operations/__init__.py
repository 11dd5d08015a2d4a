"""What runs around a training: resource estimate, dry run, throughput, inference, the teacher check, the model card."""
