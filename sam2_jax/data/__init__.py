"""Reading and writing: frame sources (`videos`), and pictures, masks and overlays (`media`)."""
