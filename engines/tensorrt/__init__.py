"""Plans of TensorRT and TensorRT-RTX: what they are built from, what they are known by, what runs them."""
