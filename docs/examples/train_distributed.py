"""Train a flow on all processes of torchrun: torchrun --nproc-per-node 2 train_distributed.py"""

import torch
import torch.distributed as dist
import zuko
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import flowkern


class Loss(torch.nn.Module):
    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self, x):
        return -self.flow().log_prob(x).mean()


def main():
    dist.init_process_group("gloo")  # "nccl" on GPUs
    torch.manual_seed(0)  # the same weights and data in all processes
    angles = torch.rand(2048) * torch.pi
    moon = torch.stack((angles.cos(), angles.sin()), 1) + 0.1 * torch.randn(2048, 2)
    loss = DistributedDataParallel(Loss(flowkern.accelerate(zuko.flows.NSF(2, transforms=3))))
    sampler = DistributedSampler(data := TensorDataset(moon))
    optimiser = torch.optim.Adam(loss.parameters(), lr=3e-3)
    for epoch in range(5):
        sampler.set_epoch(epoch)
        for (x,) in DataLoader(data, batch_size=64, sampler=sampler):
            optimiser.zero_grad()
            value = loss(x)
            value.backward()
            optimiser.step()
        total = value.detach()
        dist.all_reduce(total)
        if dist.get_rank() == 0:
            print(f"epoch {epoch}: {total / dist.get_world_size():.3f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
