"""Bounds: how many replies a robust aggregation needs to mean what it promises.

Each function returns None where the bound holds and one line where it does not. Flower checks
Bulyan's only, and then skips the round silently.
"""


def krum(cohort_size: int, num_malicious_nodes: int) -> str | None:
    """Check n >= 2f + 3 (Blanchard et al. 2017, proposition 4.2)."""
    return _at_least(2 * num_malicious_nodes + 3, "2f+3", cohort_size, num_malicious_nodes)


def multikrum(cohort_size: int, num_malicious_nodes: int, num_nodes_to_select: int) -> str | None:
    """Check Krum's bound, and that no more replies are selected than there are honest ones."""
    reason = krum(cohort_size, num_malicious_nodes)
    if reason is None and num_nodes_to_select > cohort_size - num_malicious_nodes:
        reason = (
            f"num_nodes_to_select={num_nodes_to_select}: must be at most n-f = "
            f"{cohort_size - num_malicious_nodes}"
        )
    return reason


def bulyan(cohort_size: int, num_malicious_nodes: int) -> str | None:
    """Check n >= 4f + 3 (El Mhamdi et al. 2018, section 4)."""
    return _at_least(4 * num_malicious_nodes + 3, "4f+3", cohort_size, num_malicious_nodes)


def trimmed(cohort_size: int, beta: float) -> str | None:
    """Check that trimming the share `beta` off both tails trims something and leaves something."""
    cut = int(beta * cohort_size)
    if not 0 < beta < 0.5:
        return f"beta={beta}: must be in (0, 0.5)"
    if cut < 1:
        return f"beta={beta} trims nothing of {cohort_size} clients a round; needs beta*n >= 1"
    return None


def _at_least(needed: int, formula: str, cohort_size: int, num_malicious_nodes: int) -> str | None:
    if num_malicious_nodes < 0:
        return f"num_malicious_nodes={num_malicious_nodes}: must be at least 0"
    if cohort_size >= needed:
        return None
    return (
        f"needs at least {formula} = {needed} clients a round for "
        f"num_malicious_nodes f={num_malicious_nodes}, has {cohort_size}"
    )
