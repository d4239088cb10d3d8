"""From action chunks to joint commands: which action is due, and the gate that keeps the arms safe."""
