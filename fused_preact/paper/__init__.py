"""The paper's experiments, run: its tables (`ablate`) and its equations (`propagate`)."""
