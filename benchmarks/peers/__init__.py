"""Other quantizers, for benchmarks.quantization_peers: each in a process of its own, with only what it needs.

They may be installed apart from edge-resnet: nothing here imports it. A folder holds what all are given, the
float model (float.onnx, float-dynamo.onnx, float.pt2) and the images (calibration.npy and images.npy,
normalized float32 [N, 3, H, W]; pixels.npy, uint8 [N, H, W, 3]).
"""
