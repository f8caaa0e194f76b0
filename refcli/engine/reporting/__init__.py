"""What is reported while training runs: lines of metrics, TensorBoard, validation."""
