"""Networks that some strategies put in place of the user's model, and what they are made of.

What such a strategy predicts with (prototypes, covariances, masks, columns, a corrected bias)
stands in buffers and parameters of the network, so it travels, is averaged and is evaluated with
the rest; see `equip` in `fedlearn.types.ContinualStrategy`.
"""
