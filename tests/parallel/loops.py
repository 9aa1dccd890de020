"""Training loops that crash stock Horovod, or that a sender of early gradients would get wrong.

Everything travels raw, so the mean must be that of the gradients as they stood at synchronize().
"""

import sys

import torch
from torch import nn

import horovod_qoda.torch as hvd

RAW = {"compression": hvd.Compression.layerwise(rules={"*": "raw"})}


class Checked:
    """An optimizer whose synchronize() is compared with the plain mean of what it was given."""

    def __init__(self, kind, model, **options):
        self.model = model
        base = kind(model.parameters(), lr=0.01)
        self.optimizer = hvd.DistributedOptimizer(
            base, named_parameters=model.named_parameters(), **{**RAW, **options}
        )
        self.checked = 0
        hvd.broadcast_parameters(model.state_dict(), root_rank=0)

    def synchronize(self):
        mine = [
            torch.zeros_like(p) if p.grad is None else p.grad.clone().contiguous()
            for p in self.model.parameters()
        ]
        self.optimizer.synchronize()
        for i, (p, g) in enumerate(zip(self.model.parameters(), mine, strict=True)):
            want = hvd.allreduce(g, name=f"want.{i}")
            torch.testing.assert_close(p.grad, want, rtol=1e-6, atol=1e-7)
        self.checked += 1

    def step(self):
        self.synchronize()
        with self.optimizer.skip_synchronize():
            self.optimizer.step()

    def zero_grad(self, **kwargs):
        self.optimizer.zero_grad(**kwargs)

    @property
    def overlap(self):
        return self.optimizer._gradients.rule.on


def players():
    torch.manual_seed(0)
    g = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16))
    d = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1))
    torch.manual_seed(100 + hvd.rank())
    return g, d


def batch():
    return torch.randn(12, 8), torch.randn(12, 16)


def alternating():
    """G's backward fires D's hooks, D's zero_grad() throws those gradients away."""
    g, d = players()
    og, od = Checked(torch.optim.Adam, g), Checked(torch.optim.Adam, d)
    for _ in range(8):
        z, x = batch()
        od.zero_grad()
        (d(g(z).detach()).mean() - d(x).mean()).backward()
        od.step()
        og.zero_grad()
        (-d(g(z)).mean()).backward()
        og.step()
    assert og.checked == od.checked == 8
    assert not od.overlap


def joint_forward():
    """One forward, requires_grad toggled after it, two backwards (VI-GAN, Q-GenX)."""
    g, d = players()
    og, od = Checked(torch.optim.SGD, g), Checked(torch.optim.SGD, d)
    for _ in range(6):
        z, x = batch()
        fake = d(g(z)).mean()
        loss = fake - d(x).mean()
        og.zero_grad()
        od.zero_grad()
        for p in g.parameters():
            p.requires_grad_(False)
        loss.backward(retain_graph=True)
        for p in g.parameters():
            p.requires_grad_(True)
            p.grad = None
        for p in d.parameters():
            p.requires_grad_(False)
        (-fake).backward()
        for p in d.parameters():
            p.requires_grad_(True)
        od.step()
        og.step()
    assert og.checked == od.checked == 6


def two_backwards_two_steps():
    g, d = players()
    og, od = Checked(torch.optim.SGD, g), Checked(torch.optim.SGD, d)
    for _ in range(6):
        z, x = batch()
        og.zero_grad()
        od.zero_grad()
        (d(g(z).detach()).mean() - d(x).mean()).backward()
        (-d(g(z)).mean()).backward()
        od.step()
        og.step()
    assert not od.overlap and og.overlap


def penalty():
    """Gradient penalty by double backward, gradients sent during backward."""
    _, d = players()
    od = Checked(torch.optim.Adam, d)
    for _ in range(8):
        _, x = batch()
        x.requires_grad_(True)
        od.zero_grad()
        out = d(x)
        (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        (out.mean() + ((slope.norm(dim=1) - 1) ** 2).mean()).backward()
        od.step()
    assert od.overlap


def accumulation():
    """backward_passes_per_step and no_sync()."""
    g, _ = players()
    og = Checked(torch.optim.SGD, g, backward_passes_per_step=3)
    for _ in range(6):
        og.zero_grad()
        for _ in range(3):
            g(batch()[0]).square().mean().backward()
        og.step()
    assert og.overlap
    h, _ = players()
    oh = Checked(torch.optim.SGD, h)
    for _ in range(6):
        oh.zero_grad()
        with oh.optimizer.no_sync():
            h(batch()[0]).square().mean().backward()
        h(batch()[0]).square().mean().backward()
        oh.step()
    assert oh.checked == 6 and oh.overlap


def clipping_before():
    """A gradient clipped before synchronize() is what gets averaged."""
    g, _ = players()
    og = Checked(torch.optim.SGD, g)
    for _ in range(6):
        og.zero_grad()
        g(batch()[0]).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(g.parameters(), 1e-3 * (1 + hvd.rank()))
        og.step()
    assert not og.overlap


def forced_overlap_refuses_changes():
    g, _ = players()
    og = Checked(torch.optim.SGD, g, overlap=True)
    for step in range(3):
        og.zero_grad()
        g(batch()[0]).square().mean().backward()
        if step == 2:
            g[0].weight.grad.mul_(0.5)
            try:
                og.optimizer.synchronize()
            except hvd.OverlapError as e:
                assert "'0.weight'" in str(e) and "overlap=False" in str(e)
                return
            raise AssertionError("a changed gradient went unnoticed")
        og.step()


def unused_layers():
    """Layers unused on some ranks, and never used on any."""
    torch.manual_seed(0)
    m = nn.ModuleList([nn.Linear(8, 8) for _ in range(4)])
    torch.manual_seed(100 + hvd.rank())
    om = Checked(torch.optim.SGD, m)
    for step in range(8):
        om.zero_grad()
        x = m[0](batch()[0])
        if (step + hvd.rank()) % 2:
            x = m[1](x)
        m[2](x).square().mean().backward()
        om.step()
    assert om.checked == 8 and om.overlap


def dtypes_and_strides():
    """float16, bfloat16 and float64; a transposed, an empty and a one-element gradient."""
    torch.manual_seed(0)
    m = nn.Module()
    m.f16 = nn.Parameter(torch.randn(40, 30).half())
    m.bf16 = nn.Parameter(torch.randn(40, 30).bfloat16())
    m.f64 = nn.Parameter(torch.randn(40, 30).double())
    m.turned = nn.Parameter(torch.randn(30, 40).t())
    m.empty = nn.Parameter(torch.zeros(0, 7))
    m.one = nn.Parameter(torch.ones(()))
    names = dict(m.named_parameters())
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(m.parameters(), lr=0.1),
        named_parameters=m.named_parameters(),
        compression=hvd.Compression.layerwise(bits=6, rules={"turned": "raw"}),
    )
    for step in range(5):
        torch.manual_seed(step)
        gradients = [{n: torch.randn(p.shape) for n, p in names.items()} for _ in range(hvd.size())]
        for n, p in names.items():
            g = gradients[hvd.rank()][n].to(p.dtype, copy=True)
            p.grad = g.t().contiguous().t() if n == "turned" else g
        optimizer.synchronize()
        for n, p in names.items():
            want = sum(g[n].to(p.dtype).double() for g in gradients) / hvd.size()
            assert p.grad.dtype == p.dtype and p.grad.shape == p.shape
            tolerance = {"one": 1e-6, "turned": 1e-6}.get(n, 0.3)
            torch.testing.assert_close(p.grad.double(), want, rtol=tolerance, atol=tolerance)
        with optimizer.skip_synchronize():
            optimizer.step()


def nonfinite():
    """NaN on one rank is NaN on all, in that layer, in that step and in no other."""
    for settings in ({}, {"quantizer": "powersgd", "low_rank": 2}):
        m, _ = players()
        optimizer = hvd.DistributedOptimizer(
            torch.optim.SGD(m.parameters(), lr=0.1),
            named_parameters=m.named_parameters(),
            compression=hvd.Compression.layerwise(min_numel=64, **settings),
        )
        hvd.broadcast_parameters(m.state_dict(), root_rank=0)
        for step in range(8):
            optimizer.zero_grad()
            m(batch()[0]).square().mean().backward()
            bad = step % 4
            if hvd.rank() == step % hvd.size():
                list(m.parameters())[bad].grad.view(-1)[0] = float("nan" if step < 4 else "inf")
            optimizer.synchronize()
            finite = [bool(p.grad.isfinite().all()) for p in m.parameters()]
            assert finite == [i != bad for i in range(4)], (settings, step, finite)


def sparse_gradients():
    """Sparse embeddings: by Horovod's sparse path, or densely and compressed."""
    for as_dense in (False, True):
        torch.manual_seed(0)
        model = nn.ModuleDict({"embed": nn.Embedding(50, 8, sparse=True), "out": nn.Linear(8, 4)})
        optimizer = hvd.DistributedOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.5),
            named_parameters=model.named_parameters(),
            sparse_as_dense=as_dense,
            **RAW,
        )
        twin = nn.Embedding(50, 8).requires_grad_(False)
        twin.load_state_dict(model["embed"].state_dict())
        for step in range(5):
            torch.manual_seed(10 * step)
            rows = [torch.randint(0, 50, (6,)) for _ in range(hvd.size())]
            optimizer.zero_grad()
            model["out"](model["embed"](rows[hvd.rank()])).sum().backward()
            assert model["embed"].weight.grad.is_sparse
            local = model["embed"].weight.grad.to_dense()
            optimizer.step()
            twin.weight -= 0.5 * hvd.allreduce(local, name=f"sparse{as_dense}")
            torch.testing.assert_close(model["embed"].weight.data, twin.weight)


def refused(error, words, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except error as e:
        assert words in str(e), str(e)
        return
    raise AssertionError(f"not refused: {words}")


def refusals():
    """What cannot work is refused by name, before anything is sent."""
    m, _ = players()
    wrap = hvd.DistributedOptimizer
    sgd = torch.optim.SGD(m.parameters(), lr=0.1)
    refused(ValueError, "op=", wrap, sgd, m.named_parameters(), op=hvd.Min)
    refused(ValueError, "LBFGS", wrap, torch.optim.LBFGS(m.parameters()), m.named_parameters())
    wrapped = wrap(sgd, m.named_parameters())
    refused(ValueError, "already", wrap, wrapped, m.named_parameters())
    m.requires_grad_(False)
    frozen = torch.optim.SGD(m.parameters(), lr=0.1)
    refused(ValueError, "no parameter requires", wrap, frozen, m.named_parameters())
    m[2].requires_grad_(True)
    half = wrap(torch.optim.SGD(m.parameters(), lr=0.1), m.named_parameters(), **RAW)
    m[0].requires_grad_(True)
    m(batch()[0]).square().mean().backward()
    refused(RuntimeError, "'0.weight' was frozen", half.step)


def sum_closure_scheduler_and_new_group():
    """op=Sum, step(closure), a scheduler made before wrapping, and a group added later."""
    m, late = players()
    inner = torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9)
    m(torch.ones(1, 8)).sum().backward()
    inner.step()
    schedule = torch.optim.lr_scheduler.StepLR(inner, 1)
    optimizer = hvd.DistributedOptimizer(inner, m.named_parameters(), op=hvd.Sum, **RAW)
    assert optimizer.state, "momentum was lost"
    schedule.step()
    assert abs(optimizer.param_groups[0]["lr"] - 0.01) < 1e-9
    hvd.broadcast_parameters(m.state_dict(), root_rank=0)

    def closure():
        optimizer.zero_grad()
        loss = m(batch()[0]).square().mean()
        loss.backward()
        closure.local = [p.grad.clone() for p in m.parameters()]
        return loss

    for _ in range(5):
        assert float(optimizer.step(closure)) > 0
        for i, (p, g) in enumerate(zip(m.parameters(), closure.local, strict=True)):
            want = hvd.allreduce(g, name=f"sum{i}", op=hvd.Sum)
            torch.testing.assert_close(p.grad, want, rtol=1e-6, atol=1e-7)
    with optimizer.skip_synchronize():
        refused(ValueError, "skip_synchronize", optimizer.step, closure)
    optimizer.add_param_group({"params": list(late.parameters())})
    hvd.broadcast_parameters(late.state_dict(), root_rank=0)
    for _ in range(5):
        optimizer.zero_grad()
        x = batch()
        (m(x[0]).square().mean() + late(x[1]).square().mean()).backward()
        optimizer.step()
    mine = torch.cat([p.detach().reshape(-1) for x in (m, late) for p in x.parameters()])
    both = hvd.allgather(mine.reshape(1, -1), name="replicas")
    assert (both == both[0]).all()


def optimizers_of_different_process_sets():
    """One of rank 0 alone, then one of all: names and numbers still match."""
    alone = hvd.add_process_set([0])
    m, d = players()
    first = hvd.DistributedOptimizer(
        torch.optim.SGD(m.parameters(), lr=0.1), m.named_parameters(), process_set=alone
    )
    second = Checked(torch.optim.SGD, d)
    for _ in range(5):
        for o, net, x in ((first, m, batch()[0]), (second, d, batch()[1])):
            o.zero_grad()
            net(x).square().mean().backward()
            o.step()
    hvd.remove_process_set(alone)


def two_optimizers_of_one_kind():
    """Equal parameter names in two optimizers."""
    a, b = players()[0], players()[0]
    oa, ob = Checked(torch.optim.SGD, a), Checked(torch.optim.SGD, b)
    for _ in range(5):
        for o, m in ((oa, a), (ob, b)):
            o.zero_grad()
            m(batch()[0]).square().mean().backward()
        ob.step()
        oa.step()
    assert oa.overlap and ob.overlap


if __name__ == "__main__":
    hvd.init()
    for loop in sys.argv[1:]:
        globals()[loop]()
        print(f"rank {hvd.rank()} passed {loop}", flush=True)
