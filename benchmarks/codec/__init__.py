"""Size, speed, distortion and training quality of the codecs."""
