"""The check of Horovod at import, against the Horovod that is installed."""

from __future__ import annotations

import pytest

from horovod_qoda import _horovod


def test_the_horovod_that_set_up_installs_passes():
    hvd = _horovod.require()
    assert hvd.__name__ == "horovod.torch"
    assert hvd.mpi_built()


def test_an_older_horovod_is_refused_with_the_command(monkeypatch):
    import horovod

    monkeypatch.setattr(horovod, "__version__", "0.27.0")
    with pytest.raises(ImportError, match=r"Horovod 0\.27\.0 is too old") as caught:
        _horovod.require()
    assert "pip download horovod==0.28.1" in str(caught.value)


def test_an_optimizer_without_callable_handles_is_refused(monkeypatch):
    import horovod.torch.optimizer as optimizer

    class Other:
        def synchronize(self):
            return None

    monkeypatch.setattr(optimizer, "_DistributedOptimizer", Other)
    with pytest.raises(ImportError, match="does not accept a callable as a handle"):
        _horovod.require()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mpi_lib_v2.so: undefined symbol: _ZN3c10", "built for another PyTorch"),
        ("libmpi.so.40: cannot open shared object file", "MPI that Horovod was built with"),
        ("something else", "cannot be imported"),
    ],
)
def test_a_library_that_does_not_load_is_explained(text, says):
    message = _horovod._explain(ImportError(text), "2.13.0+cpu")
    assert says in message
    assert text in message
    assert "make setup" in message


@pytest.mark.parametrize(
    ("torch_version", "standard"),
    [("2.0.1", 17), ("2.1.0", 17), ("2.12.1+cu130", 17), ("2.13.0+cpu", 20), ("2.14.0.dev1", 20)],
)
def test_the_command_names_the_standard_of_the_installed_pytorch(torch_version, standard):
    command = _horovod.install_command(_horovod._cxx_standard(torch_version))
    assert f"CMAKE_CXX_STANDARD {standard}/" in command
