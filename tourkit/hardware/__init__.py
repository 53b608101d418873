"""What this machine grants: processors, memory, GPUs and stacks."""
