"""What makes a model smaller: calibration and quantization (pruning, QAT and distillation follow)."""
