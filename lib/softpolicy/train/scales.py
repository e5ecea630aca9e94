"""What a scale of a chapter means for its live runs."""

# What each scale means: keyword arguments of `train`. Full is the papers' budget.
SCALES = {
    "smoke": dict(steps=300, warmup=100, eval_every=100, eval_episodes=1, checkpoint_every=200),
    "demo": dict(steps=20_000, warmup=1_000, eval_every=2_000, eval_episodes=3, checkpoint_every=10_000),
    "full": dict(steps=1_000_000, warmup=10_000, eval_every=5_000, eval_episodes=10, checkpoint_every=20_000),
}
# What a live run of an agent with dear updates has instead at scale demo.
DEMO = {
    "nclql": dict(steps=10_000),
    "s2ac": dict(steps=3_000, eval_every=500),
    "lsac": dict(steps=3_000, warmup=500, eval_every=500, eval_episodes=10),
}


def at_scale(scale: str, agent: str = "sac", steps: int = 0) -> tuple[int, dict]:
    """Steps of a chapter's live run (`steps` themselves, unless zero) and the other arguments of `train`.

    ValueError for an unknown scale, and for steps that end before the first evaluation.
    """
    if scale not in SCALES:
        raise ValueError(f"SCALE is '{scale}'; accepted are {', '.join(SCALES)}")
    protocol = SCALES[scale] | (DEMO.get(agent, {}) if scale == "demo" else {})
    usual, every = protocol.pop("steps"), protocol["eval_every"]
    first = (protocol["warmup"] // every + 1) * every
    if steps and steps < first:
        raise ValueError(f"STEPS is {steps}; scale {scale} needs at least {first}, where the first evaluation is")
    return steps or usual, protocol
