"""What runs on the device. Activations are dense NHWC memory: pixel m, channel c is element m*C + c; weights are dense KRSC."""
