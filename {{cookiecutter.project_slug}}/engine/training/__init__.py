"""What a training step does: metrics, losses, optimizers, learning rates, the gradient guard, hardware set-up."""
