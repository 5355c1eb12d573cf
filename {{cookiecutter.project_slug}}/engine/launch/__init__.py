"""How processes are started and ended: SLURM, torchrun, signals, hangs."""
