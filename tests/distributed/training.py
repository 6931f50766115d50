"""What two processes run together, for test_distributed.py: training, checkpoints and samples, in float64."""

import traceback

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

import flowkern
from flowkern.distributions import normal_rows
from flowkern.nn import MLP
from tests.adapters import normflows_models, program_models

D, C, ROWS = program_models.D, program_models.C, 8
SMALL = {"transforms": 2, "hidden_features": (8,)}


def accelerated(model):
    flowkern.accelerate(model)
    assert flowkern.explain(model).replaced and not flowkern.explain(model).left
    return model


FLOWS = {
    "NSF": lambda: flowkern.flows.NSF(D, C, bins=4, **SMALL),
    "MAF": lambda: flowkern.flows.MAF(D, C, **SMALL),
    "CNF": lambda: flowkern.flows.CNF(D, C, hidden_features=(8,), steps=2),
    "nflows": lambda: accelerated(program_models.nflows_flow("nsf")),
    "nflows MAF": lambda: accelerated(program_models.nflows_flow("maf")),
    "zuko": lambda: accelerated(program_models.zuko_flow("nsf")),
    "zuko coupling": lambda: accelerated(program_models.zuko_flow("nice")),
    "normflows": lambda: accelerated(normflows_models.build(*normflows_models.MODELS["conditional"][:2])),
}


class Loss(nn.Module):
    """The mean of −log p as the forward of a module: what gathers the parameters of a sharded one."""

    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self, x, context):
        flow = self.flow
        density = flow.log_prob(x, context) if hasattr(flow, "log_prob") else flow(context).log_prob(x)
        return -density.mean()


def built(name):
    torch.manual_seed(0)
    loss = Loss(FLOWS[name]().double())
    for parameter in loss.parameters():
        parameter.data *= 0.5
    return loss


def data():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(ROWS, size, generator=generator, dtype=torch.float64) for size in (D, C)]


def own_rows():
    half, rank = ROWS // 2, dist.get_rank()
    return [t[half * rank : half * (rank + 1)] for t in data()]


def train(loss, batch):
    optimiser = torch.optim.SGD(loss.parameters(), 0.01)
    for _ in range(2):
        optimiser.zero_grad()
        loss(*batch).backward()
        optimiser.step()
    return loss


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def assert_same_weights(loss, wanted):
    for (name, got), want in zip(loss.named_parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(whole(got).detach(), want.detach(), rtol=1e-10, atol=1e-10, msg=name)


# Ways to train on two processes; each must end with the weights of one that sees the whole batch.


def replicated(loss):
    return DistributedDataParallel(loss)


def sharded(loss):
    return fully_shard(loss)


def sharded_by_network(loss):
    """Each conditioner apart: its hooks are seen, and it is called by itself."""
    nets = [m for m in loss.modules() if isinstance(m, MLP) or type(m).__name__ == "MaskedMLP"]
    nets += [m.transform_net for m in loss.modules() if hasattr(m, "transform_net")]
    for net in nets:
        fully_shard(net)
    return fully_shard(loss)


def sharded_by_transform(loss):
    """Each transform apart, both of its directions."""
    for transform in loss.flow.transform.transforms:
        register_fsdp_forward_method(fully_shard(transform), "inverse")
    return fully_shard(loss)


WAYS = {"DDP": replicated, "FSDP2": sharded}


def trains(shard, name):
    loss = built(name)
    train(shard(loss), own_rows())
    assert_same_weights(loss, train(built(name), data()))


def methods_besides_forward():
    """A sharded flow of nflows, whose log_prob and sample are registered."""
    loss, plain = built("nflows"), built("nflows")
    flow = fully_shard(loss.flow)
    for method in ("log_prob", "sample"):
        register_fsdp_forward_method(flow, method)
    train(loss, own_rows())
    train(plain, data())
    assert_same_weights(loss, plain)
    samples = []
    for model in (flow, plain.flow):
        torch.manual_seed(3)
        samples.append(model.sample(5, data()[1][:2]))
    torch.testing.assert_close(*samples, rtol=1e-9, atol=1e-9)


def parameters_that_are_not_gathered():
    """A masked network that is sharded by itself is read without a call of it: PyTorch raises an error."""
    loss = built("MAF")
    for transform in loss.flow.transform.transforms:
        fully_shard(transform.conditioner)
    with pytest.raises(RuntimeError, match="mixed torch.Tensor and DTensor"):
        fully_shard(loss)(*own_rows())


def checkpoint_of_shards(folder):
    """Saved sharded, loaded plain and sharded again."""
    loss = fully_shard(built("nflows"))
    train(loss, own_rows())
    dcp.save({"loss": loss.state_dict()}, checkpoint_id=folder)
    plain = built("nflows")
    state = {"loss": plain.state_dict()}
    dcp.load(state, checkpoint_id=folder)
    plain.load_state_dict(state["loss"])
    again = fully_shard(built("nflows"))
    state = {"loss": again.state_dict()}
    dcp.load(state, checkpoint_id=folder)
    again.load_state_dict(state["loss"])
    wanted = train(built("nflows"), data())
    assert_same_weights(plain, wanted)
    assert_same_weights(again, wanted)


def samples_of_ranks():
    """Together those of one process."""
    flow, context = built("MAF").flow, data()[1][0]
    rank, sizes = dist.get_rank(), dict(features=D, dtype=torch.float64)
    with torch.no_grad():
        part = flow.transform.inverse(normal_rows(11, 6 * rank, 6 * (rank + 1), **sizes), context)[0]
        wanted = flow.transform.inverse(normal_rows(11, 0, 12, **sizes), context)[0]
    parts = [torch.empty_like(part) for _ in range(2)]
    dist.all_gather(parts, part)
    torch.testing.assert_close(torch.cat(parts), wanted, rtol=1e-12, atol=1e-12)


CASES = {f"{name} by {way}": (trains, shard, name) for name in FLOWS for way, shard in WAYS.items()}
CASES |= {f"{name} by FSDP2 of networks": (trains, sharded_by_network, name) for name in ("NSF", "nflows", "zuko")}
CASES |= {f"{name} by FSDP2 of transforms": (trains, sharded_by_transform, name) for name in ("NSF", "MAF")}
CASES |= {
    "methods besides forward": (methods_besides_forward,),
    "parameters that are not gathered": (parameters_that_are_not_gathered,),
    "checkpoint": (checkpoint_of_shards,),
    "samples": (samples_of_ranks,),
}


def work(rank, folder):
    """One of the two processes: each case's traceback, or nothing, into a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{folder}/meeting")
    results = {}
    for name, (function, *arguments) in CASES.items():
        try:
            function(*arguments, *([f"{folder}/checkpoint"] if function is checkpoint_of_shards else []))
            results[name] = ""
        except Exception:
            results[name] = traceback.format_exc()
        dist.barrier()
    torch.save(results, f"{folder}/{rank}")
    dist.destroy_process_group()
