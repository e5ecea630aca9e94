"""What tests of runs share: short settings, and the command line as a real process."""

import subprocess
import sys
import time
from pathlib import Path

from softpolicy.agents import lsac, sac

TINY = sac.Config(width=16, batch=8)
SHORT = dict(warmup=20, eval_every=30, eval_episodes=2, checkpoint_every=40)
# An LSAC whose first two fits come at updates 20 and 40.
TINY_LSAC = lsac.Config(width=16, batch=8, replicas=2, refit_every=20, n_synth=30, diffusion_width=8,
                        diffusion_blocks=1, diffusion_steps=4, sampler_steps=3)  # fmt: skip


def command(out, env_id="Hopper-v5", steps=1500, seeds=(2, 5), **more):
    settings = dict(agent="sac", env_id=env_id, steps=steps, out=out, width=16, batch=8, warmup=50, eval_every=100,
                    eval_episodes=1, checkpoint_every=130) | more  # fmt: skip
    flags = [x for k, v in settings.items() for x in (f"--{k.replace('_', '-')}", str(v))]
    return [sys.executable, "-m", "softpolicy.train", "--seeds", *map(str, seeds), *flags]


def call(*args, **kw):
    return subprocess.run(command(*args, **kw), capture_output=True, text=True)


def rows_of(out):
    return (Path(out) / "rows.csv").read_text()


def until(condition, process, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, "the run made no progress"
        time.sleep(0.02)
