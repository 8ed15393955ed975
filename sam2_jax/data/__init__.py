"""Reading and writing: frames (`videos`, `streams`), pictures (`media`), masks (`masks`, `sav`, `results`)."""
