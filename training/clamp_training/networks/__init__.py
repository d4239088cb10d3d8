"""The paper's networks: Section III-B (encoders) and III-C (diffusion policy). Widths come from the config alone."""
