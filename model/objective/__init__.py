"""What is masked and mixed, what is predicted, and the loss."""
