"""What a network needs to run at all: device, number format, memory, checkpoints (torch)."""
