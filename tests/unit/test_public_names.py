"""``horovod_qoda.torch`` has every public name of ``horovod.torch``, submodules included."""

import importlib
import sys

import horovod.torch as stock

import horovod_qoda.torch as plugin

OWN = {"DistributedOptimizer", "Compression", "init"}
"""Names that mean something of this package instead."""


def test_every_public_name_is_there_and_most_are_horovods_own():
    public = {n for n in vars(stock) if not n.startswith("_")}
    missing = sorted(public - set(dir(plugin)))
    assert not missing
    modules = {n for n in public if isinstance(getattr(stock, n), type(sys))}
    replaced = {n for n in public - modules if getattr(plugin, n) is not getattr(stock, n)}
    assert replaced == OWN


def test_submodules_that_scripts_import():
    for name in ("compression", "elastic", "functions", "mpi_ops", "optimizer", "sync_batch_norm"):
        assert importlib.import_module(f"horovod_qoda.torch.{name}") is not None
    assert plugin.elastic.TorchState is stock.elastic.TorchState
