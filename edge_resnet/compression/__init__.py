"""What makes a model smaller: calibration and quantization (pruning, QAT and distillation follow).

Not called `compress`: that name is the function `edge_resnet.compress`.
"""
