"""Reading and writing: frames (`videos`, `streams`), pictures (`media`, `overlay`), masks (`masks`, `sav`, `results`)."""
