"""What only training needs: distillation, parameter groups, optimisers and learning-rate schedules."""
