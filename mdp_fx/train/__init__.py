"""Training: fine-tuning on Accelerate, distillation, checkpoints that resume exactly."""
