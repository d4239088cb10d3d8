"""From observations to action chunks: the artifact, preprocessing, history, diffusion sampling, and the runtime."""
