"""Teach an agent to cross a small icy lake: actor, critic, and a frozen reference that the actor stays near.

    accel launch --cpu --num_processes 2 docs/examples/actor_critic.py
    accel launch --cpu docs/examples/actor_critic.py --accumulation 2

Advantage actor-critic (Mnih et al., 2016) with a penalty on the distance to a reference policy, as in
learning from human feedback. Episodes differ in length, so losses are sums with ``weight=``: every step of
every episode counts the same, however they are spread over processes. Learning rates fall with the episodes
played, not with the updates, which are fewer on more processes. Prints a table. Needs rich.
"""

from __future__ import annotations

import argparse
import copy
import time
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.functional import one_hot
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader, TensorDataset

from accel import Accelerator
from accel.utils import set_seed

SIDE = 5
GOAL = SIDE * SIDE - 1
HOLES = (6, 8, 13, 16)
STEPS = 20
"""The longest episode."""
SLIP = 0.1
"""How often the ice decides where a step leads."""
MOVES = torch.tensor([[-1, 0], [1, 0], [0, -1], [0, 1]])
DISCOUNT, KEEP_NEAR, EXPLORE = 0.95, 0.01, 0.01

Chances = tuple[torch.Tensor, ...]


@dataclass
class Agent:
    """The actor, the critic, the policy that the actor began with, and what trains the first two."""

    actor: nn.Module
    critic: nn.Module
    reference: nn.Module
    optimizers: tuple[Optimizer, Optimizer]
    schedulers: tuple[LRScheduler, LRScheduler]


@dataclass
class Episodes:
    """What happened in E episodes of at most T steps: (E, T) each, places (E, T, 25)."""

    places: torch.Tensor
    moves: torch.Tensor
    returns: torch.Tensor
    valid: torch.Tensor
    won: torch.Tensor
    """(E,)"""


def load_data(episodes: int) -> TensorDataset:
    """Return where each episode begins, and its dice: two numbers in [0, 1) per step.

    All chance is in the data, so that one process and many live through the same episodes.
    """
    generator = torch.Generator().manual_seed(0)
    free = torch.tensor([place for place in range(GOAL) if place not in HOLES])
    starts = free[torch.randint(len(free), (episodes,), generator=generator)]
    dice = torch.rand(episodes, STEPS, 2, generator=generator)
    return TensorDataset(starts, dice.to(torch.get_default_dtype()))


def build(episodes: int, lr: float = 1e-2) -> Agent:
    """Return a new agent whose learning rates fall to zero over so many episodes."""
    actor, critic = (
        nn.Sequential(nn.Linear(SIDE * SIDE, 64), nn.Tanh(), nn.Linear(64, out)) for out in (len(MOVES), 1)
    )
    reference = copy.deepcopy(actor).requires_grad_(False)
    first, second = Adam(actor.parameters(), lr=lr), Adam(critic.parameters(), lr=lr)
    fall = [LambdaLR(each, lambda played: max(0.0, 1 - played / episodes)) for each in (first, second)]
    return Agent(actor, critic, reference, (first, second), (fall[0], fall[1]))


def prepare(accelerator: Accelerator, agent: Agent) -> Agent:
    """Return the agent ready for this set-up. A unit without anything to train gets no container."""
    units = accelerator.prepare(
        actor=(agent.actor, agent.optimizers[0], agent.schedulers[0]),
        critic=(agent.critic, agent.optimizers[1], agent.schedulers[1]),
        reference=agent.reference,
        schedule_in="samples",
    )
    (actor, actor_optimizer, actor_rate), (critic, critic_optimizer, critic_rate), (reference,) = units
    return Agent(actor, critic, reference, (actor_optimizer, critic_optimizer), (actor_rate, critic_rate))


def seen(place: torch.Tensor) -> torch.Tensor:
    """Return what the networks see of places: one-hot, with a last dimension of 25."""
    return one_hot(place, SIDE * SIDE).to(torch.get_default_dtype())


def moved(place: torch.Tensor, move: torch.Tensor) -> torch.Tensor:
    """Return where moves lead; the bank of the lake stops them."""
    corner = torch.stack([place // SIDE, place % SIDE], dim=-1)
    row, column = (corner + MOVES.to(place.device)[move]).clamp(0, SIDE - 1).unbind(-1)
    return row * SIDE + column


@torch.no_grad()
def play(actor: nn.Module, start: torch.Tensor, dice: torch.Tensor) -> Episodes:
    """Let the actor play an episode for each start: 1 for the goal, -1 for a hole, -0.02 for each step."""
    holes = torch.tensor(HOLES, device=start.device)
    place, alive, won = (
        start,
        torch.ones_like(start, dtype=torch.bool),
        torch.zeros_like(start, dtype=torch.bool),
    )
    steps = []
    for choice, slip in (step.unbind(-1) for step in dice.unbind(1)):
        # The move at which the summed probabilities pass the die.
        summed = actor(seen(place)).softmax(-1).cumsum(-1)
        move = (summed < choice[:, None]).sum(-1).clamp(max=len(MOVES) - 1)
        slipped = (slip / SLIP * len(MOVES)).long().clamp(max=len(MOVES) - 1)
        after = moved(place, torch.where(slip < SLIP, slipped, move))
        arrived, sank = after == GOAL, torch.isin(after, holes)
        steps.append((seen(place), move, arrived.to(dice) - sank.to(dice) - 0.02, alive))
        won |= alive & arrived
        place, alive = after, alive & ~arrived & ~sank
    places, moves, rewards, valid = (torch.stack(column, dim=1) for column in zip(*steps, strict=True))
    returns, ahead = torch.zeros_like(rewards), torch.zeros_like(rewards[:, 0])
    for step in reversed(range(STEPS)):
        ahead = (rewards[:, step] + DISCOUNT * ahead) * valid[:, step]
        returns[:, step] = ahead
    return Episodes(places, moves, returns, valid, won)


def losses_of(agent: Agent, episodes: Episodes) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the losses of critic and actor, as sums over all steps of all episodes."""
    values = agent.critic(episodes.places).squeeze(-1)
    missed = (values - episodes.returns).square()
    advantages = episodes.returns - values.detach()
    chances = agent.actor(episodes.places).log_softmax(-1)
    chosen = chances.gather(-1, episodes.moves[..., None]).squeeze(-1)
    entropy = -(chances.exp() * chances).sum(-1)
    apart = (chances.exp() * (chances - agent.reference(episodes.places).log_softmax(-1))).sum(-1)
    objective = KEEP_NEAR * apart - EXPLORE * entropy - chosen * advantages
    return (missed * episodes.valid).sum(), (objective * episodes.valid).sum()


def update(accelerator: Accelerator, agent: Agent, episodes: Episodes) -> None:
    """Train actor and critic on the episodes of one micro-batch."""
    steps = int(episodes.valid.sum())
    # One window for both models. The same steps weigh in both losses, and are counted once.
    with accelerator.accumulate(agent.actor, agent.critic):
        for loss in losses_of(agent, episodes):
            accelerator.backward(loss, weight=steps)
        for optimizer, scheduler in zip(agent.optimizers, agent.schedulers, strict=True):
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()


def train(accelerator: Accelerator, agent: Agent, loader: DataLoader[Chances]) -> tuple[float, float]:
    """Play a prepared loader's episodes and learn from them; return the share won and the mean length."""
    won, lengths = [], []
    for start, dice in loader:
        episodes = play(agent.actor, start, dice)
        update(accelerator, agent, episodes)
        # Not every batch need be full on every rank: what only fills one up is no episode.
        ends = accelerator.gather_for_metrics((episodes.won, episodes.valid.sum(1)))
        won.append(ends[0])
        lengths.append(ends[1])
    return float(torch.cat(won).float().mean()), float(torch.cat(lengths).float().mean())


def main() -> None:
    """Parse the options, train, and show the result on the main process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--episodes", type=int, default=2048, help="episodes per epoch, over all processes")
    parser.add_argument("--batch_size", type=int, default=64, help="episodes per process and micro-batch")
    parser.add_argument("--accumulation", type=int, default=1, help="micro-batches per update")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started = time.monotonic()
    accelerator = Accelerator(gradient_accumulation_steps=args.accumulation)
    set_seed(args.seed)
    agent = prepare(accelerator, build(args.epochs * args.episodes))
    data = load_data(args.episodes)
    loader = accelerator.prepare(DataLoader(data, batch_size=args.batch_size, shuffle=True))
    table = Table("episodes", "crossed the lake", "steps", "learning rate", title="Icy lake")
    for epoch in range(1, args.epochs + 1):
        won, length = train(accelerator, agent, loader)
        rate = agent.schedulers[0].get_last_lr()[0]
        table.add_row(str(epoch * args.episodes), f"{won:.1%}", f"{length:.1f}", f"{rate:.2e}")
    if accelerator.is_main_process:
        console = Console(highlight=False)
        console.print(table)
        console.print(
            f"{accelerator.num_processes} process(es) on {accelerator.device.type},"
            f" {time.monotonic() - started:.1f} s"
        )


if __name__ == "__main__":
    main()
