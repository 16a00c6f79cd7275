"""How a network learns: patches, augmentation, losses, the training loop (torch)."""
