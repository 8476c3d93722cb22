"""The model file: `FORMAT.md` says what it is; `header`, `writer` and `reader` make it so."""
