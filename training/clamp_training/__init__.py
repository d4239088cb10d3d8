"""Training of CLAMP: the paper's encoders and diffusion policy, from recorded bags to an artifact the robot loads.

Follow the data: `store` (bags to a training store), `dataset` (store to batches), `networks` (the models),
`pretrain` (contrastive encoders), `train_policy` (diffusion), `export` (ONNX and manifest).
"""
