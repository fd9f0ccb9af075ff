"""Training: importance gathered in the loop, schedules, masks, fine-tuning, distillation, runs that go on exactly."""
