"""The transform code: rotation, bit allocation and trellis quantization."""
