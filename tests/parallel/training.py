"""What training scripts do besides backward and step: training.py CASE CASE ..."""

import copy
import os
import signal
import sys
import threading
import time
from collections import Counter
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import horovod_qoda.torch as hvd
from horovod_qoda.torch.replicas import hash_parameters
from tests.parallel.loops import RAW, Checked, batch, players, refused

SMALL = hvd.Compression.layerwise(min_numel=64, bits=4)


def wrap(model, kind=torch.optim.SGD, lr=0.05, **options):
    if next(model.parameters()).dtype != torch.bfloat16:  # Horovod's broadcast refuses it
        hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    return hvd.DistributedOptimizer(
        kind(model.parameters(), lr=lr),
        named_parameters=model.named_parameters(),
        **{"compression": SMALL, **options},
    )


def same_on_all_ranks(values):
    """Whether floats or tensors are equal to the bit on all ranks."""
    mine = torch.cat([torch.as_tensor(v).detach().double().reshape(-1) for v in values])
    everyone = hvd.allgather(mine.reshape(1, -1), name="same")
    return torch.equal(everyone.nan_to_num(), everyone[:1].expand_as(everyone).nan_to_num())


def train(
    model, optimizer, steps=6, loss=lambda model: model(batch()[0]).square().mean(), check=True
):
    """Plain steps; replicas are the same afterwards."""
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(model)
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    assert not check or same_on_all_ranks(model.parameters())
    return losses


def amp():
    """GradScaler: an overflow on one rank alone skips the step on all of them."""
    model, _ = players()
    optimizer = wrap(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=1000)
    for step in range(8):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(batch()[0]).float().square().mean()
        if step == 5 and hvd.rank() == hvd.size() - 1:
            loss = loss * float("inf")
        before = [p.detach().clone() for p in model.parameters()]
        scaler.scale(loss).backward()
        optimizer.synchronize()
        scaler.unscale_(optimizer)
        with optimizer.skip_synchronize():
            scaler.step(optimizer)
        scaler.update()
        moved = not all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        assert moved == (step != 5), step
        assert scaler.get_scale() == (256.0 if step < 5 else 128.0)
        assert same_on_all_ranks([scaler.get_scale(), *model.parameters()])


def amp_plain():
    """The loop of PyTorch's own examples, without synchronize(): each line of it for all ranks."""
    for compression in (hvd.Compression.layerwise(min_numel=64), hvd.Compression.fp16):
        for unscale in (False, True):
            model, _ = players()
            kind = torch.optim.SGD if unscale else partial(torch.optim.Adam, fused=True)
            optimizer = wrap(model, kind, 1e-3, compression=compression)
            scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=1000)
            for step in range(10):
                optimizer.zero_grad()
                loss = model(batch()[0]).square().mean()
                if step in (0, 7) and hvd.rank() == step % hvd.size():
                    loss = loss * float("inf")
                before = [p.detach().clone() for p in model.parameters()]
                scaler.scale(loss).backward()
                if unscale:
                    scaler.unscale_(optimizer)
                    for p in model.parameters():  # a script may hide what the scaler has found
                        p.grad.nan_to_num_(0.0, 0.0, 0.0)
                scaler.step(optimizer)
                scaler.update()
                after = list(model.parameters())
                moved = not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
                assert moved == (step not in (0, 7)), step
                assert scaler.get_scale() == 256.0 / (2 if step < 7 else 4)
                assert same_on_all_ranks([scaler.get_scale(), *after])
            assert optimizer._gradients.rule.on == (not unscale)
    refused(ValueError, "no closure", scaler.step, optimizer, lambda: None)
    optimizer.found_inf = torch.zeros(())
    refused(RuntimeError, "does not hand over the scaler", optimizer.step)


def amp_without_gradients_on_a_rank():
    """A rank whose batch reached no layer unscales nothing, and steps with the others."""
    model, _ = players()
    optimizer = wrap(model, torch.optim.SGD, 1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    for step in range(4):
        optimizer.zero_grad()
        before = [p.detach().clone() for p in model.parameters()]
        if step != 2 or hvd.rank() == 0:
            scaler.scale(model(batch()[0]).square().mean()).backward()
        else:
            scaler.scale(torch.ones(()))
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        after = list(model.parameters())
        assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert same_on_all_ranks(after)


def amp_two_players():
    """One scaler for two optimizers: an overflow skips the step of one of them, on all ranks."""
    models = players()
    optimizers = [wrap(model) for model in models]
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    for step in range(6):
        before = [[p.detach().clone() for p in model.parameters()] for model in models]
        for i, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
            optimizer.zero_grad()
            loss = model(batch()[i]).square().mean()
            bad = step == 4 and i == 1 and hvd.rank() == 0
            scaler.scale(loss * float("inf") if bad else loss).backward()
            scaler.step(optimizer)
        scaler.update()
        moved = [
            not all(torch.equal(a, b) for a, b in zip(old, model.parameters(), strict=True))
            for old, model in zip(before, models, strict=True)
        ]
        assert moved == [True, step != 4], (step, moved)
        assert scaler.get_scale() == (256.0 if step < 4 else 128.0)
        assert same_on_all_ranks([p for model in models for p in model.parameters()])


def amp_equals_float32():
    """Scaling by a power of two changes no bit, QODA's rates included, in any order of calls."""

    def weights(kind, unscale, scaled):
        model, _ = players()
        optimizer = wrap(model, kind, 0.5, **RAW)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=scaled, growth_interval=2)
        for _ in range(8):
            optimizer.zero_grad()
            scaler.scale(model(batch()[0]).square().mean()).backward()
            if unscale:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        return hash_parameters(model.parameters())

    for kind in (torch.optim.SGD, hvd.QODA):
        want = weights(kind, False, scaled=False)
        assert all(weights(kind, unscale, scaled=True) == want for unscale in (False, True)), kind


def clipping_between():
    """The averaged gradient is clipped: one norm on all ranks, and the step uses it."""
    model, _ = players()
    optimizer = wrap(model, lr=1.0)
    for _ in range(6):
        optimizer.zero_grad()
        (50 * model(batch()[0]).square().mean()).backward()
        optimizer.synchronize()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        assert norm > 0.01 and same_on_all_ranks([norm])
        before = [p.detach().clone() for p in model.parameters()]
        with optimizer.skip_synchronize():
            optimizer.step()
        moves = [(p - b).square().sum() for p, b in zip(model.parameters(), before, strict=True)]
        assert 0.009 < float(sum(moves).sqrt().detach()) < 0.011


def train_compiled(backend):
    model, _ = players()
    checked = Checked(torch.optim.SGD, model)
    fast = torch.compile(model, backend=backend)
    for _ in range(6):
        checked.zero_grad()
        fast(batch()[0]).square().mean().backward()
        checked.step()
    assert checked.checked == 6 and checked.overlap


def compiled():
    """Dynamo and AOT autograd; the code generator behind them changes nothing for hooks."""
    train_compiled("aot_eager")


def compiled_by_inductor():
    """Generated C++; gradients are sent while the compiled backward runs."""
    train_compiled("inductor")
    made = torch._dynamo.utils.counters["inductor"]
    assert made["fxgraph_cache_miss"] + made["fxgraph_cache_hit"] > 0, "inductor compiled nothing"


def channels_last():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten())
    torch.manual_seed(100 + hvd.rank())

    def image():
        return torch.randn(4, 3, 8, 8).to(memory_format=torch.channels_last)

    checked, optimizer = Checked(torch.optim.SGD, model), wrap(model)
    # Afterwards, because Horovod's broadcast refuses what is not contiguous.
    model.to(memory_format=torch.channels_last)
    for _ in range(6):
        checked.zero_grad()
        model(image()).square().mean().backward()
        assert not model[2].weight.grad.is_contiguous()
        checked.step()
    train(model, optimizer, loss=lambda m: m(image()).square().mean())
    assert model[2].weight.is_contiguous(memory_format=torch.channels_last)


def checkpointing():
    """Both kinds of gradient checkpointing: layers run again during backward."""
    for reentrant in (False, True):
        model, _ = players()
        checked = Checked(torch.optim.SGD, model)
        for _ in range(6):
            checked.zero_grad()
            x = batch()[0].requires_grad_()
            hidden = checkpoint(model[:2], x, use_reentrant=reentrant)
            checkpoint(model[2], hidden, use_reentrant=reentrant).square().mean().backward()
            checked.step()
        assert checked.checked == 6 and checked.overlap


def bfloat16_model():
    model, _ = players()
    model = model.to(torch.bfloat16)
    losses = train(
        model, wrap(model), 20, lambda m: m(batch()[0].bfloat16()).float().square().mean()
    )
    assert all(p.grad.dtype == torch.bfloat16 for p in model.parameters())
    assert sum(losses[-5:]) < sum(losses[:5])


def frozen_layers():
    """Frozen before wrapping, and frozen and thawed again afterwards."""
    model, _ = players()
    model[0].requires_grad_(False)
    checked = Checked(torch.optim.SGD, model)
    kept = model[0].weight.detach().clone()
    for step in range(9):
        if step in (3, 6):
            model[2].weight.requires_grad_(step == 6)
        checked.zero_grad()
        held = model[2].weight.detach().clone()
        model(batch()[0]).square().mean().backward()
        checked.optimizer.step()
        assert torch.equal(held, model[2].weight) == (3 <= step < 6)
    assert torch.equal(kept, model[0].weight) and model[0].weight.grad is None
    assert same_on_all_ranks(model.parameters())


def several_backwards():
    """Two losses, each with its own backward, before one step."""
    model, _ = players()
    checked = Checked(torch.optim.SGD, model)
    for _ in range(6):
        checked.zero_grad()
        model(batch()[0]).square().mean().backward()
        model(batch()[0]).abs().mean().backward()
        checked.step()
    assert checked.checked == 6 and not checked.overlap


def adasum():
    """Two ranks' moves x, y become x (1 - x·y / 2|x|²) + y (1 - x·y / 2|y|²), per layer."""
    model, _ = players()
    optimizer = wrap(model, op=hvd.Adasum)
    for _ in range(3):
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.zero_grad()
        model(batch()[0]).square().mean().backward()
        mine = [-0.05 * p.grad.reshape(1, -1) for p in model.parameters()]
        optimizer.step()
        for i, (p, b, move) in enumerate(zip(model.parameters(), before, mine, strict=True)):
            x, y = hvd.allgather(move, name=f"move{i}")
            half = x.dot(y) / 2
            want = x * (1 - half / x.dot(x)) + y * (1 - half / y.dot(y))
            torch.testing.assert_close((p.detach() - b).reshape(-1), want, rtol=1e-3, atol=1e-7)
    assert same_on_all_ranks(model.parameters())


def predivide_factor():
    """Keeps stock Horovod's float16 sums in range; the compressed exchange sums float32."""
    layerwise = hvd.Compression.layerwise(min_numel=64, bits=8)
    n = float(hvd.size())
    for compression, factor, finite in (
        (hvd.Compression.fp16, 1.0, False),
        (hvd.Compression.fp16, n, True),
        (layerwise, 1.0, True),
        (layerwise, n, True),
    ):
        model = nn.Linear(256, 1, bias=False)
        optimizer = wrap(model, compression=compression, gradient_predivide_factor=factor)
        model(torch.full((1, 256), 6e4)).sum().backward()
        optimizer.synchronize()
        (mean,) = model.weight.grad
        assert bool(mean.isfinite().all()) == finite, (compression, factor)
        assert not finite or bool((mean / 6e4 - 1).abs().max() < 0.05)
    refused(ValueError, "op=Average", wrap, model, op=hvd.Sum, gradient_predivide_factor=n)


def three_optimizers():
    """Alive at once, stepped in turn, in another order each time, one only now and then."""
    models = [players()[0] for _ in range(3)]
    kinds = (torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop)
    checked = [Checked(kind, model) for kind, model in zip(kinds, models, strict=True)]
    for step in range(8):
        order = [(step + i) % 3 for i in range(3 if step % 2 else 2)]
        for i in order:
            checked[i].zero_grad()
            models[i](batch()[0]).square().mean().backward()
        for i in reversed(order):
            checked[i].step()
    assert sum(c.checked for c in checked) == 20 and all(c.overlap for c in checked)


def a_new_optimizer_while_the_old_one_lives():
    """Scripts rebuild their optimizer and keep the old object; its hooks must stay quiet."""
    model, _ = players()
    old = wrap(model)
    train(model, old)
    assert old._gradients.rule.on
    new = wrap(model, torch.optim.Adam)
    train(model, new, 8)
    assert new._gradients.rule.on and not old._gradients.rule.on


def compression_changes():
    """Warm-up, then 4 bits, then 2: agreed on without stopping, adapted anew."""
    torch.manual_seed(0)
    model = nn.Linear(128, 256)
    torch.manual_seed(100 + hvd.rank())
    optimizer = wrap(model, compression=hvd.Compression.layerwise(bits=4, warmup_steps=1000))
    records = []
    optimizer.add_listener(records.append)

    def loss(m):
        return m(torch.randn(64, 128)).square().mean()

    train(model, optimizer, 5, loss)
    optimizer.set_compression(warmup_steps=0)
    train(model, optimizer, 25, loss)
    optimizer.set_compression(bits=2, topology="scatter_reduce")
    train(model, optimizer, 25, loss)
    assert [r.exchange for r in records] == list(range(55))
    kinds = [r.topology for r in records]
    assert kinds == ["raw"] * 5 + ["allgather"] * 25 + ["scatter_reduce"] * 25
    for bits, last in ((4, records[25:30]), (2, records[50:])):
        mean = sum(r.coded_bits for r in last) / len(last)
        assert abs(mean - bits) < 0.05 * bits, (bits, mean)
    assert optimizer._gradients.rule.on
    refused(TypeError, "'bitts'", optimizer.set_compression, bitts=3)
    refused(ValueError, "bits must be", optimizer.set_compression, bits=99)
    refused(ValueError, "matches no layer", optimizer.set_compression, rules={"nothing": 3})
    loss(model).backward()
    refused(RuntimeError, "after step()", optimizer.set_compression, bits=3)
    optimizer.step()
    plain = wrap(copy.deepcopy(model), compression=hvd.Compression.none)
    refused(ValueError, "layerwise", plain.set_compression, bits=3)


def compression_changes_differently():
    """Other values on one rank: the same error on all, and training can go on after mending."""
    model, _ = players()
    optimizer = wrap(model)
    train(model, optimizer)
    optimizer.set_compression(bits=3 if hvd.rank() else 5)
    refused(hvd.MismatchError, "bits is", train, model, optimizer, 1)
    optimizer.set_compression(bits=3)
    train(model, optimizer)


def compression_changes_on_one_rank(topology, warmup_steps=0):
    """set_compression() forgotten on a rank: all ranks end with an error, none waits."""
    model, _ = players()
    settings = {"min_numel": 64, "topology": topology, "warmup_steps": warmup_steps}
    optimizer = wrap(model, compression=hvd.Compression.layerwise(**settings))
    train(model, optimizer)
    if hvd.rank() == 0:
        optimizer.set_compression(bits=5)
    try:
        train(model, optimizer, 1)
    except (hvd.MismatchError, hvd.PayloadError, hvd.HorovodInternalError) as e:
        assert "set_compression()" in str(e) or "Mismatched" in str(e), str(e)
    else:
        raise AssertionError("went unnoticed")


def forgotten_with_allgather():
    compression_changes_on_one_rank("allgather")


def forgotten_with_scatter_reduce():
    compression_changes_on_one_rank("scatter_reduce")


def forgotten_while_warming_up():
    compression_changes_on_one_rank("allgather", warmup_steps=100)


def load_on_rank_0_after_steps():
    """A checkpoint loaded in the middle of training on rank 0, then broadcast."""
    model, _ = players()
    optimizer = wrap(model, torch.optim.Adam)
    train(model, optimizer, 4)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    torch.manual_seed(hvd.rank())
    train(model, optimizer, 6)
    want = hash_parameters(model.parameters())
    train(model, optimizer, 3)
    if hvd.rank() == 0:
        model.load_state_dict(saved[0])
        optimizer.load_state_dict(saved[1])
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    torch.manual_seed(hvd.rank())
    train(model, optimizer, 6)
    # Exchange number, tables and factors are rank 0's on every rank: the same bits again.
    assert hash_parameters(model.parameters()) == want


def load_everywhere_then_broadcast():
    """Every rank loads, trains on, and rank 0's options are broadcast: no rank is left behind."""
    model, _ = players()
    optimizer = wrap(model, torch.optim.Adam)
    train(model, optimizer)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer)
    optimizer.param_groups[0]["lr"] = 0.01 * (1 + hvd.rank())
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    assert optimizer.param_groups[0]["lr"] == 0.01
    train(model, optimizer)


def accumulation_without_communication():
    """no_sync() on ranks of their own choice; raw, so that the mean is known."""
    model, _ = players()
    checked = Checked(torch.optim.SGD, model, **RAW)
    for step in range(6):
        checked.zero_grad()
        if (step + hvd.rank()) % 2:
            with checked.optimizer.no_sync():
                model(batch()[0]).square().mean().backward()
        model(batch()[0]).square().mean().backward()
        checked.step()
    assert checked.checked == 6 and checked.overlap


def interrupted():
    """Ctrl-C on one rank while it waits: its next step says what to do, others had theirs."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    model, _ = players()
    optimizer = wrap(model)
    train(model, optimizer)
    optimizer.zero_grad()
    if hvd.rank() == 0:
        time.sleep(3)  # the others wait for this rank
        train(model, optimizer, 1, check=False)
        hvd.barrier()
        return
    model(batch()[0]).square().mean().backward()
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        optimizer.step()
    except KeyboardInterrupt:
        for _ in range(2):  # not only the next step
            optimizer.zero_grad()
            model(batch()[0]).square().mean().backward()
            refused(RuntimeError, "restart the job from its last checkpoint", optimizer.step)
        hvd.barrier()
    else:
        raise AssertionError("not interrupted")


def profiled():
    """A profile of a step names what the exchange did, in its own thread too where asked."""
    everywhere = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    for compression in (SMALL, hvd.Compression.fp16):
        model, _ = players()
        optimizer = wrap(model, compression=compression)
        train(model, optimizer)
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], experimental_config=everywhere
        ) as profile:
            train(model, optimizer, 1)
        counts = Counter(event.name for event in profile.events())
        layers = len([*model.parameters()])
        assert counts["horovod_qoda.put"] == counts["horovod_qoda.wait"] == layers, counts
        coded = compression is SMALL
        assert (counts["horovod_qoda.encode"] > 0) == coded
        assert (counts["horovod_qoda.decode"] > 0) == coded


if __name__ == "__main__":
    hvd.init()
    for case in sys.argv[1:]:
        globals()[case]()
        print(f"rank {hvd.rank()} passed {case}", flush=True)
