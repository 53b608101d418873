"""Readers of the headers of weights: GGUF, safetensors, config.json. They check every bound, and load no model.

Files come from strangers: a header states counts, lengths and positions, and each of them can be wrong on purpose. So
nothing is built from a count before the count is compared with a bound and with the size of the file. The readers
return the facts as they are written. planning/model_shape.py says what they mean.
"""
