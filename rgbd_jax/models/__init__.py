"""Networks: spatial, recoupling and temporal modules, and the whole that joins them."""
