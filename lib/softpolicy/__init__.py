"""Reinforcement learning that acts by sampling: the library behind *Sampling Soft Policies*.

The house, floor by floor. A module imports from its own floor and from those above it in this list, never in a circle.

ground    streams (random numbers, a stream a seed and purpose), settings, device (what makes an update fast),
          runs (the store of runs), stats
samplers  samplers (Langevin and its relatives), svgd (SVGD and its log-density)
problems  bandit, posterior, multigoal, multigoal_exact, mazes (what is exactly known of them), envs (tasks by id)
learning  nets, optim, replay, diffusion, synthetic
policies  langevin_policy, stein_policy (acting by chains and by particles on a critic)
agents    sac, sql, s2ac, lql, nclql, lsac, dsact (in `agents`: settings, `act`, `update`; none imports another, but for
          dsact, which is lsac with other settings)
training  train, join (seeds trained apart, put together)
studies   studies (the settings of recorded studies), bandit_study, entropy_chains, entropy_study, multigoal_study,
          stein_study, maze_study
pages     report, claims, plots
"""

__version__ = "0.1.0"
