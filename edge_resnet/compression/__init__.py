"""What makes a model smaller: calibration, quantization, repairs, quantization-aware training, float layers.

Not called `compress`: that name is the function `edge_resnet.compress`.
"""
