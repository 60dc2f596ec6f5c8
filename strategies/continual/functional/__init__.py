"""The second engine of local training: pure functions over trees of tensors.

Each continual strategy here is the twin of one in `strategies.continual.avalanche`: the same
settings, samples, order, memory and draws, and the same weights up to rounding. What a twin is made
of (`method`, `springs`, `optimizers`, `step`) maps tensors to tensors and changes none of them, so
that one definition serves both a loop over one client's batches (`continual`, `live`) and a whole
cohort at once under ``torch.func.vmap`` (`cohort`).

Nothing here imports Avalanche.
"""
