"""One file an agent: its frozen settings, its losses (a function an equation), `act` and `update`.

What the loop asks of an agent, a `torch.nn.Module`:

`act(obs, streams=None)`  actions `[S, N, A]` for observations `[S, N, O]`; without streams the evaluation action
`update(batch)`           one update from a `replay.Batch`; metrics as a dict of `[S]` tensors
`opts`                    its optimisers by name
`noise`                   the S generators that `update` draws from

and, of those that have them:

`config.transitions`      how many transitions a seed's update takes, where that is not `config.batch`
`prepare(replay)`         work before each update that no CUDA graph can hold
`notice(metrics)`         at each evaluation, given the last update's metrics as lists: what a user should know
`phase`                   updates of equal phase do the same operations
"""

from __future__ import annotations

from softpolicy import streams as rng


def save(agent) -> dict:
    """Everything that an agent's training continues from, as tensors and plain data."""
    return {
        "nets": agent.state_dict(),
        "opts": {name: opt.state_dict() for name, opt in agent.opts.items()},
        "noise": rng.save(agent.noise),
    }


def restore(agent, state: dict) -> None:
    """Take back what `save` gave, before the first update: a CUDA graph would go on with old tensors of `opts`."""
    agent.load_state_dict(state["nets"])
    for name, opt in agent.opts.items():
        opt.load_state_dict(state["opts"][name])
    rng.restore(agent.noise, state["noise"])
