"""Train a little, stop when told, go on when started again: ``preempted.py STEPS [what happens]``."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from accel import Accelerator
from accel.utils import PreemptionKwargs, ProjectConfiguration, set_seed


class Rows(Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, index):
        return torch.full((3,), index / 40), torch.tensor(index)


steps, happens = int(sys.argv[1]), sys.argv[2:]
project = ProjectConfiguration("run", automatic_checkpoint_naming=True, total_limit=2)
limit = PreemptionKwargs(deadline=3600, margin=3590 if "deadline" in happens else 0)
accelerator = Accelerator(cpu=True, project_config=project, kwargs_handlers=[limit])
set_seed(7)
model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
model, optimizer, loader = accelerator.prepare(
    model, optimizer, DataLoader(Rows(), batch_size=4 // accelerator.num_processes, shuffle=True)
)


class Count:
    done = 0

    def state_dict(self):
        return {"done": self.done}

    def load_state_dict(self, state):
        self.done = state["done"]


count = Count()
accelerator.register_for_checkpointing(count)
resumed = accelerator.resume()
rank, attempt = accelerator.process_index, accelerator.restart_count
trace = Path(f"trace.{rank}.txt")


def tell(**what):
    with trace.open("a") as file:
        file.write(json.dumps({"attempt": attempt, "step": count.done, **what}) + "\n")


tell(resumed=resumed is not None)
while count.done < steps:
    for x, ids in loader:
        accelerator.backward(model(x).square().mean())
        optimizer.step()
        optimizer.zero_grad()
        count.done += 1
        tell(ids=ids.tolist())
        if count.done % 4 == 0:
            accelerator.save_state()
        if "kill" in happens and attempt == 0 and count.done == 6 and rank == accelerator.num_processes - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if "wait" in happens and resumed is None:
            time.sleep(0.05)
        if accelerator.should_stop:
            tell(stops=str(accelerator.stop_reason), kind=accelerator.stop_reason.kind)
            accelerator.save_state()
            accelerator.exit_for_requeue(step=count.done)
        if count.done == steps:
            break
if accelerator.is_main_process:
    state = accelerator.unwrap_model(model).state_dict()
    Path("final.json").write_text(json.dumps({name: value.tolist() for name, value in state.items()}))
