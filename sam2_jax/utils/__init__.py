"""What programs import of the original's `sam2.utils`."""
