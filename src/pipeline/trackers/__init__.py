"""One file a tracker: TensorBoard, MLflow, Weights & Biases."""
