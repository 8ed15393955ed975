"""Conversion of SAM 2 checkpoints: official `.pt`, `.safetensors`, and this project's folder."""
