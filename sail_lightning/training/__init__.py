"""Parts that only training uses: distillation, parameter groups, optimisers and learning-rate schedules."""
