"""From a trained policy to one ONNX file, and from that file to actions without torch."""
