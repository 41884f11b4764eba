"""What rounding may do: the model, sums, scaling, exact fractions and decimal text."""
