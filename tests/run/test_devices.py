"""Meshes: sizes that fit, and the parts of a mesh that decode by themselves."""

from __future__ import annotations

import dataclasses
import os

import pytest

from pal_jax.run import devices


def test_the_parts_of_a_mesh_are_whole_rows_of_it():
    mesh = devices.make_mesh(fsdp=4, tensor=2)
    parts = devices.divide(mesh, 2)
    assert dict(parts.shape) == {'data': 2, 'fsdp': 2, 'tensor': 2}
    assert parts.devices.reshape(-1, 2).tolist() == mesh.devices.reshape(-1, 2).tolist()
    # A part of one device holds the model by itself, whatever the mesh does.
    assert dict(devices.divide(mesh, 8).shape) == {'data': 8, 'fsdp': 1, 'tensor': 1}


def test_parts_that_do_not_fit_are_told(monkeypatch):
    with pytest.raises(ValueError, match='decode.shares=3 does not divide 8 devices of 1 processes'):
        devices.divide(devices.make_mesh(), 3)
    monkeypatch.setattr(devices.jax, 'process_count', lambda: 4)
    with pytest.raises(ValueError, match='decode.shares=2 does not divide 8 devices of 4 processes'):
        devices.divide(devices.make_mesh(), 2)


@dataclasses.dataclass(frozen=True)
class OfSlice:
    """A device as it looks in one of several slices."""

    id: int
    slice_index: int
    platform: str = 'cpu'
    device_kind: str = 'cpu'
    process_index: int = 0


def test_data_alone_crosses_the_network_between_slices(monkeypatch):
    monkeypatch.setattr(devices, 'Mesh', lambda placed, *_, **__: placed)
    # The devices come in any order.
    chips = [OfSlice(number, number % 2) for number in range(8)]
    placed = devices.make_mesh(data=4, fsdp=2, devices=chips)
    assert placed.shape == (4, 2, 1)
    assert [{device.slice_index for device in copy.flat} for copy in placed] == [{0}, {0}, {1}, {1}]
    assert len(set(placed.flat)) == 8
    with pytest.raises(ValueError, match=r'mesh.data=1 .* 2 slices'):
        devices.make_mesh(devices=chips)
    # To the driver of GPUs every host is a slice.
    gpus = [dataclasses.replace(chip, platform='gpu') for chip in chips]
    assert devices.make_mesh(devices=gpus).shape == (1, 8, 1)


def test_flags_of_the_tpu_compiler_are_ours_unless_the_environment_has_others(monkeypatch):
    monkeypatch.delenv('LIBTPU_INIT_ARGS', raising=False)
    devices.overlap_on_tpu()
    assert os.environ['LIBTPU_INIT_ARGS'].split() == list(devices.LIBTPU_ARGS)
    monkeypatch.setenv('LIBTPU_INIT_ARGS', '--xla_tpu_scoped_vmem_limit_kib=98304')
    devices.overlap_on_tpu()
    assert os.environ['LIBTPU_INIT_ARGS'] == '--xla_tpu_scoped_vmem_limit_kib=98304'
