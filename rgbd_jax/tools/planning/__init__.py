"""What a training needs, found out without running it: parameters, work, memory and messages."""
