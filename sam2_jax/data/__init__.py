"""Reading and writing: frames (`videos`, `streams`), pictures and mp4 (`media`), masks (`masks`, `sav`, `results`)."""
