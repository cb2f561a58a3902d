"""The transform code consists of rotation, bit allocation and trellis-coded quantization."""
