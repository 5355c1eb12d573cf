"""The run folder and its checkpoints: written so that no kill breaks them, found again, resumed."""
