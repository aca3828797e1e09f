"""PPO on Ray's RLlib: the settings and the policy of ``train.ppo``, its environments in processes of any machine.

Reads top to bottom: cluster, algorithm, learning, saving. The learner stays in this process; every environment runner
takes a CPU, wherever the Ray cluster has one. RLlib's own checkpoints are pickles, so none is written or read: a run is
checkpointed and resumed, and its policy saved, as by every other algorithm.
"""

from __future__ import annotations

import dataclasses
import math
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from agents.rllib_module import TokenSharedModule
from train.arguments import Arguments
from train.checkpoint import check_weights, load_checkpoint, save_checkpoint
from train.environment import architecture_of, env_keywords, make_env, start_from
from train.folder import card, curves, open_run
from train.progress import goes_on, policy_path
from wdmoe_env.optional import optional
from wdmoe_env.policies.policy_file import save_policy

with optional("ray", extra="rllib"):
    import ray
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.core import DEFAULT_MODULE_ID
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

LOCAL = "local"
OBJECT_STORE_BYTES = 256 * 2**20  # of a Ray started here
PATIENCE_S = 10
SAMPLE_TIMEOUT_S = 3600  # RLlib's own minute is soon over with a large model, and throws the samples away


def train_rllib(arguments: Arguments, settings: dict[str, Any]) -> Path:
    """Train, and save the policy.

    Args:
        arguments: of the run.
        settings: PPO's in the words of Stable-Baselines3, and ``num_envs`` over all runners.

    Returns:
        Path of the policy's weights; the JSON lies beside it.

    Raises:
        ValueError, TypeError, OSError: see ``train.agent.train``; no Ray cluster with CPUs enough at the address.
    """
    if settings["num_envs"] % arguments.env_runners:
        raise ValueError(f"env_runners must divide {settings['num_envs']} environments, got {arguments.env_runners}")
    check_address(arguments.address)
    with closing(make_env(arguments, num_envs=1)) as env:
        decision = env.unwrapped.config.decision
        architecture = architecture_of(arguments, env.unwrapped.simulator.sizes)
    checkpoint, path = open_run(arguments), policy_path(arguments)
    update_steps = settings["num_envs"] * settings["n_steps"]
    model = {"decision": decision, "architecture": dataclasses.asdict(architecture)}
    with ray_cluster(arguments), closing(Run(arguments, settings, model)) as run:
        run.begin(arguments, checkpoint)
        if goes_on(arguments, settings, run.timesteps, update_steps):
            result = learn(run, arguments, checkpoint)
            save_policy(path, run.module.network, decision, card(arguments, settings, run.timesteps, result))
    return path


def check_address(address: str) -> None:
    """Knock at a cluster's door: Ray itself waits for minutes.

    Raises:
        ValueError: not an address.
        ConnectionError: nobody answers.
    """
    if address in (LOCAL, "auto"):
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"address must be local, auto or HOST:PORT, got {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=PATIENCE_S).close()
    except OSError as error:
        raise ConnectionError(f"expected a Ray cluster at {address}, got none: {error}") from None


@contextmanager
def ray_cluster(arguments: Arguments) -> Iterator[None]:
    """Start Ray here, or join a cluster, which goes on when this process leaves it.

    Raises:
        ConnectionError: no cluster answers.
        ValueError: it has fewer CPUs than there are to be environment runners, or a node that makes no environment.
    """
    here = {"num_cpus": arguments.env_runners, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    try:
        ray.init(arguments.address, log_to_driver=False, **(here if arguments.address == LOCAL else {}))
    except (ConnectionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ConnectionError(f"expected a Ray cluster at {arguments.address}, got none: {reason}") from None
    try:
        cpus = int(ray.cluster_resources().get("CPU", 0))
        if cpus < arguments.env_runners:
            raise ValueError(f"expected a CPU for each of {arguments.env_runners} environment runners, Ray has {cpus}")
        check_nodes(arguments)
        yield
    finally:
        ray.shutdown()


def check_nodes(arguments: Arguments) -> None:
    """Make an environment on every node: where that fails, RLlib tries again for minutes.

    Raises:
        ValueError: a node cannot.
    """
    trial = ray.remote(num_cpus=0)(lambda: make_env(arguments, num_envs=1).close())
    for node in ray.nodes():
        if node["Alive"] and node["Resources"].get("CPU"):
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            try:
                ray.get(trial.options(scheduling_strategy=there).remote())
            except ray.exceptions.RayError as error:
                reason = str(error).strip().splitlines()[-1]
                name = node["NodeManagerHostname"]
                raise ValueError(f"expected an environment on every node, got none on {name}: {reason}") from None


class Run:
    """RLlib's algorithm, what it learns, and how far it is.

    Args:
        arguments: of the run.
        settings: PPO's.
        model: what ``TokenSharedModule`` is told.

    Attributes:
        algorithm: RLlib's.
        module: the learner's.
        timesteps: environment steps so far.
    """

    def __init__(self, arguments: Arguments, settings: dict[str, Any], model: dict[str, Any]) -> None:
        torch.manual_seed(arguments.seed)
        self.algorithm = configuration(arguments, settings, model).build_algo()
        learner = next(iter(self.algorithm.learner_group.foreach_learner(lambda learner: learner))).get()
        self.module: Any = learner.module[DEFAULT_MODULE_ID].unwrapped()
        self._optimizers = {"optimizer": learner.get_optimizer()}
        self.timesteps = 0

    def begin(self, arguments: Arguments, checkpoint: Path) -> None:
        """Take the weights that the run starts from, or goes on from, to the runners, and seed their episodes."""
        start_from(arguments, self.module.network)
        if arguments.resume:
            self.timesteps = load_checkpoint(checkpoint, self.module, self._optimizers)
        runners = self.algorithm.env_runner_group
        runners.sync_weights(from_worker_or_learner_group=self.algorithm.learner_group, timeout_seconds=None)
        runners.foreach_env_runner(partial(seed_runner, seed=arguments.seed, timesteps=self.timesteps))

    def update(self) -> dict[str, float]:
        """Sample a batch and learn from it; returns the points of the curves."""
        started, result = time.monotonic(), self.algorithm.train()
        sampled, learned = result["env_runners"], result["learners"][DEFAULT_MODULE_ID]
        steps = int(sampled["num_env_steps_sampled"])
        self.timesteps += steps
        points = {
            "rollout/ep_rew_mean": sampled["episode_return_mean"],
            "time/fps": int(steps / (time.monotonic() - started)),
            "time/total_timesteps": self.timesteps,
        }
        return points | {f"train/{name}": learned[name] for name in ("policy_loss", "vf_loss", "entropy")}

    def save(self, path: Path) -> None:
        """Write a checkpoint."""
        save_checkpoint(path, self.module, self._optimizers, self.timesteps)

    def close(self) -> None:
        """End the environment runners."""
        self.algorithm.stop()


def configuration(arguments: Arguments, settings: dict[str, Any], model: dict[str, Any]) -> Any:
    """RLlib's configuration for PPO's settings."""
    num_envs = settings["num_envs"]
    return (
        PPOConfig()
        .environment(
            f"wdmoe_env:{arguments.env_id}",
            env_config=env_keywords(arguments),
            normalize_actions=False,  # the policy's actions are the environment's as they are
            clip_actions=False,
        )
        .env_runners(
            num_env_runners=arguments.env_runners,
            num_envs_per_env_runner=num_envs // arguments.env_runners,
            gym_env_vectorize_mode="vector_entry_point",
            rollout_fragment_length=settings["n_steps"],
            sample_timeout_s=SAMPLE_TIMEOUT_S,
        )
        .rl_module(rl_module_spec=RLModuleSpec(TokenSharedModule, model_config=model))
        .training(
            train_batch_size_per_learner=num_envs * settings["n_steps"],
            minibatch_size=settings["batch_size"],
            num_epochs=settings["n_epochs"],
            shuffle_batch_per_epoch=True,
            lr=settings["learning_rate"],
            gamma=settings["gamma"],
            lambda_=settings["gae_lambda"],
            clip_param=settings["clip_range"],
            entropy_coeff=settings["ent_coef"],
            vf_loss_coeff=settings["vf_coef"],
            vf_clip_param=math.inf,
            grad_clip=settings["max_grad_norm"],
            use_kl_loss=False,
        )
        .debugging(log_level="ERROR")
    )


def seed_runner(runner: Any, seed: int, timesteps: int) -> None:
    """Seed the environments and draws of a runner.

    Not by RLlib's own seed: it gives environment n of runner w the seed s + w + n, so a runner has most episodes of
    its neighbour.
    """
    seeds = np.random.SeedSequence([seed, timesteps, runner.worker_index])
    torch.manual_seed(int(seeds.generate_state(1)[0]))
    if runner.env is not None:  # the one of this process has none
        runner.env.reset(seed=seeds.spawn(1)[0].generate_state(runner.num_envs).tolist())


def learn(run: Run, arguments: Arguments, checkpoint: Path) -> dict[str, Any]:
    """Learn for the steps that are left; returns what the policy's card says of the result.

    Raises:
        ValueError: the weights are not finite any more; what was saved before stays.
    """
    points: dict[str, float] = {}
    saved_at = done = run.timesteps
    progress = tqdm(total=arguments.timesteps, initial=done, unit="block", disable=not arguments.progress)
    with closing(curves(Path(arguments.out), done)) as log, progress as bar:
        while run.timesteps < arguments.timesteps:
            points = run.update()
            check_weights(run.module, run.timesteps)
            bar.update(run.timesteps - bar.n)
            for name, value in points.items():
                log.record(name, value)
            log.dump(run.timesteps)
            if run.timesteps - saved_at >= arguments.checkpoint_every:
                run.save(checkpoint)
                saved_at = run.timesteps
    run.save(checkpoint)
    return {"final_mean_return": points.get("rollout/ep_rew_mean")}
