"""The tiny model of this repository: data, tokenizer, training, export and scores. Run its parts with `python -m`."""
