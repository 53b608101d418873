"""The tiny model of this repository: data, tokenizer, training, export, scores. Run each module with `python -m`."""
