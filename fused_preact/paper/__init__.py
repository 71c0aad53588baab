"""The paper's experiments, run: its tables (`ablate`)."""
