"""What the paper claims, measured on its networks."""
