"""One file a stack. `STACKS` says which module loads which format; an inference library is imported there only."""

STACKS = {"gguf": "llama_cpp"}
