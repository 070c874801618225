"""Students as graphs that run without PyTorch."""

import os

# From 1.32 on, ONNX Runtime tells Microsoft of its use and keeps a device id on disk, unless it is told not to
# before it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
