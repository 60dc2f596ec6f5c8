"""Models: one architecture a file, each taking ``input_shape`` and ``num_classes`` by keyword."""
