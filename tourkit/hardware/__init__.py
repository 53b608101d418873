"""What this machine offers: processors, memory, GPUs and stacks."""
