"""Avalanche 0.6.0's strategies, corrected by subclassing. Nothing of the library is patched.

What upstream does, and what the modules of this package do instead:

``ewc``
    The Fisher pass leaves its last gradients behind and wakes layers frozen in evaluation mode.
    Here the model is left as it was found.
``si``
    Weights are stored as views of the live parameters, so on a CPU every step has length 0 and SI
    is plain fine-tuning: copies. Importances may be negative: floor 0. They are cut at 1e-3 and
    damped by 1e-7: both are options. The path integral reads gradients that clipping has
    shortened: those of the loss.
``lwf``
    The teacher stays in training mode: evaluation mode, frozen. The order of its units is that of
    a set: sorted.
``mas``
    A loss of exactly 0 raises: it does not. Importances are measured in training mode: evaluation
    mode.
``replay``
    Calls a deprecated function that changes the warning filters of the program: calls its
    successor.
``agem``
    Memory grows with every experience: one bound. It is read in storage order from the start:
    shuffled. With more experiences than ``sample_size`` it fails: at least one sample of each.
``der``
    Replays nothing while memory holds less than a batch: what there is. Ignores the criterion once
    it replays: uses it. Takes logits without task labels: with. Sizes depend on the order of a
    set: sorted.
"""
