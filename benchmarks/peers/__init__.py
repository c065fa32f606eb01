"""Other tools, for benchmarks.quantization_peers and peers_table: each in a process of its own.

They may be installed apart from edge-resnet: only own.py and torch_model.py import it. A folder holds what
all are given; for quantization_peers the float model (float.onnx, float-dynamo.onnx, float.pt2) and the
images (calibration.npy and images.npy, normalized float32 [N, 3, H, W]; pixels.npy, uint8 [N, H, W, 3]), for
peers_table what benchmarks/peer_models.py says.
"""
