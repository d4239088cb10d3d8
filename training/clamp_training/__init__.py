"""Training of CLAMP: the paper's encoders and diffusion policy, from recorded bags to an artifact the robot loads.

Follow the data: `store` (bags to a training store), `networks` (the models), `contrastive` (the encoders' loss),
`pretrain` (encoders), `retrieval` (how well they find each other), `policy_data` and `train_policy` (the policy's
pretraining and fine-tuning), `export` (ONNX and manifest). `loop` takes the steps of both trainings, on the `processes`
of the run.
"""
