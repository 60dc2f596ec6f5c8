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
``lfl``, ``feature_distillation``
    Need models with an attribute or a base class of Avalanche's: any that ends in a linear layer.
    LFL's student stays in evaluation mode from its second step on, and its head frozen on the model
    object: neither. The teacher of feature distillation stays in training mode: evaluation mode.
    ``mode="mse"`` raises: it does not.
``rwalk``
    Trains in evaluation mode, with a second forward and backward pass a step: training mode, one.
    The distance to a checkpoint counts what a server does between rounds: own steps only.
    Intervals straddle experiences, or are dropped where one ends: they end with it. Scores divide
    by a largest one of 0: they do not.
``generative_replay``
    The generator knows MNIST's size and scale only, cannot be kept between turns, and goes on from
    old weights, which makes new inputs rare: any shape, kept, anew. Fails with several heads: it
    does not.
``replay``
    Calls a deprecated function that changes the warning filters of the program: calls its
    successor.
``agem``
    Memory grows with every experience: one bound. It is read in storage order from the start:
    shuffled. With more experiences than ``sample_size`` it fails: at least one sample of each. At
    every step it puts all layers in training mode: leaves them as they are.
``der``
    Replays nothing while memory holds less than a batch: what there is. Ignores the criterion once
    it replays: uses it. Takes logits without task labels: with. Sizes depend on the order of a
    set: sorted.
``replay`` with another policy than ``experience_balanced``
    A class's share stays empty where it has few samples, and depends on the order of a set: others
    fill it, the smallest labels first. Herding orders what is left anew each time that memory
    shrinks, around the mean of what is left: once, when samples come.
``gem``
    Memory grows with every experience: one bound. It wakes layers frozen in evaluation mode: it
    does not. All gradients go to the CPU as doubles and come back as float32: their products go.
``gdumb``
    Puts the experience into memory before it learns it, so memory depends on when it is looked at,
    and starts from the initial model: memory is of the past, training starts at what was received.
``mir``
    Replays nothing of the experience that has just ended, nor from a memory smaller than a batch:
    both. Sets an attribute that only some losses have, copies the model at every step, raises where
    a layer is frozen, and chooses under dropout: none of these.
``gss``
    Adds the gradient of the last sample that it scored to the step: it does not. Takes samples
    again in every epoch, and those that it replays: once. Raises while memory is smaller than a
    batch, or where all scores are equal: it does not. Knows one head: all.
``rar``
    Moves samples away from a class of the batch, the farthest one's, along one gradient: towards
    the features of the nearest one. Traces and copies the model at every step: neither.
``cumulative``, ``joint``
    Keep the data sets of the past, or take the whole stream in one call: they read it.
``er_ace``, ``er_aml``
    Put an experience into memory before they learn it: memory is of the past, what is replayed is
    derived. Ignore the criterion: use it. ER-AML loops for ever where a batch holds more of a class
    than memory, fails where it holds a single class, normalises a pair by another anchor's
    similarities, and compares with past classes too: none of these.
``mer``, ``la_maml``
    Memory is filled at an experience's end: after each step, each sample counting once. Gradients
    are neither clipped nor pulled towards the received weights: they are. MER fails under batch
    normalisation: it does not. La-MAML initialises the model anew, calls every model with task
    labels, and the loss is NaN where a batch has fewer samples than it takes parts: none of these.
``bic``
    Needs ``nc_benchmark`` and an argument of a scheduler that torch dropped: neither. The teacher's
    softmax runs over the batch, at a fixed temperature: over the classes, at the one asked for.
    Samples to fit to come on top of memory: within. The correction is fitted when the experience
    is over: at the end of each turn.
``cope``
    Takes every experience for one batch, and stops after it: a turn's steps, prototypes after each.
    The loss is infinite where a probability rounds to 1, and goes class by class: neither.
``prototypes`` (NCM, FeCAM, and the base of iCaRL and SCR)
    New class means are averaged with old ones, of features that are gone: all are computed anew, at
    the end of each turn. FeCAM shrinks covariances twice, and is NaN for a class of one sample, a
    feature below 0, or features without covariance: once, and it is not.
``settling`` (streaming LDA, and FeCAM without memory)
    LDA's covariance depends on the order of samples, and classes that nobody has met may win:
    neither. The backbone must be pretrained: or the clients train it in their first experience.
``icarl``
    Needs ``nc_benchmark``'s tables, keeps more samples than memory has room for, averages in
    mirrored samples, and learns nothing of a class that comes back: none of these.
``scr``
    The loss is scaled by ``temperature / 0.07``: it is not.
"""
