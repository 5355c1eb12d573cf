"""Training: the Trainer and its actions, losses, metrics, optimizers, learning rates, the gradient guard."""
