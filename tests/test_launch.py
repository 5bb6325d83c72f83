"""What launch/ starts exists: modules, their flags, configs and their keys, extras, and the name of the decode pool."""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from pal_jax.run import shipped
from pal_jax.run.checkpoint import flatten
from pal_jax.run.settings import to_dict

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / 'launch'
JOBS = yaml.safe_load((LAUNCH / 'gke.yaml').read_text())
CONTAINERS = {
    job['name']: job['template']['spec']['template']['spec']['containers'][0] for job in JOBS['spec']['replicatedJobs']
}


def module_of(container: dict[str, Any]) -> str:
    """What a container runs: its command, or the entry point of the image."""
    entry = re.search(r'ENTRYPOINT \[(.*)\]', (LAUNCH / 'Dockerfile').read_text())
    assert entry
    return container.get('command', re.findall(r'"([^"]+)"', entry[1]))[-1]


def check_command(module: str, arguments: list[str]) -> None:
    """The module exists and its help names every flag; the config exists and has every key."""
    found = importlib.util.find_spec(module)
    assert found and found.origin, module
    text = Path(found.origin).read_text()
    config = next((each for each in arguments if each.startswith('--config=')), None)
    for flag in (argument.partition('=')[0] for argument in arguments):
        if flag.startswith('--config.'):
            assert config
            path, _, variant = shipped.config_path(config.removeprefix('--config=')).partition(':')
            keys = flatten(to_dict(runpy.run_path(str(ROOT / path))['get_config'](variant)))
            assert flag.removeprefix('--config.') in keys, f'no key {flag}'
        else:
            assert flag in text, f'{module} has no {flag}'


@pytest.mark.parametrize('name', CONTAINERS)
def test_containers_run_what_exists(name) -> None:
    check_command(module_of(CONTAINERS[name]), CONTAINERS[name]['args'])


def test_a_wrong_flag_and_a_wrong_key_are_noticed() -> None:
    with pytest.raises(AssertionError, match='--slot'):
        check_command('pal_jax.serve', ['--slotz=3'])
    with pytest.raises(AssertionError, match='adress'):
        check_command('pal_jax.train', ['--config=configs/rlpa.py', '--config.decode.adress=x'])


def test_the_set_of_jobs_is_one() -> None:
    """Fields of JobSet v1alpha2, and that the trainer calls the decode pool by the name that JobSet gives it."""
    spec, (decode, train) = JOBS['spec'], JOBS['spec']['replicatedJobs']
    assert (JOBS['apiVersion'], JOBS['kind']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet')
    assert spec['network']['enableDNSHostnames']
    assert train['dependsOn'] == [{'name': decode['name'], 'status': 'Ready'}]
    # The fields of JobSet's own types; those below `template` are Kubernetes' and have a test of their own.
    assert set(spec) <= {'network', 'successPolicy', 'failurePolicy', 'replicatedJobs'}
    assert all(set(job) <= {'name', 'replicas', 'dependsOn', 'template'} for job in (decode, train))
    assert list(JOBS['metadata']['labels']) == ['kueue.x-k8s.io/queue-name']
    assert spec['successPolicy'] == {'operator': 'All', 'targetReplicatedJobs': [train['name']]}
    port = CONTAINERS['decode']['ports'][0]['containerPort']
    host = f'{JOBS["metadata"]["name"]}-{decode["name"]}-0-0.{spec["network"]["subdomain"]}'
    assert f'--config.decode.address={host}:{port}' in CONTAINERS['train']['args']
    assert f'--port={port}' in CONTAINERS['decode']['args']
    assert CONTAINERS['decode']['readinessProbe']['tcpSocket']['port'] == port
    for job in (decode, train):
        pods = job['template']['spec']
        chips = pods['template']['spec']['containers'][0]['resources']['limits']['google.com/tpu']
        shape = pods['template']['spec']['nodeSelector']['cloud.google.com/gke-tpu-topology']
        sizes = [int(size) for size in shape.split('x')]
        assert sizes[0] * sizes[1] == chips * pods['parallelism']
        assert pods['completions'] == pods['parallelism']
    workdir = next(flag for flag in CONTAINERS['train']['args'] if flag.startswith('--workdir='))
    # A preempted pod finds the run of its predecessor.
    assert workdir.startswith('--workdir=gs://')
    assert CONTAINERS['train']['env'] == CONTAINERS['decode']['env']


@pytest.mark.parametrize('job', JOBS['spec']['replicatedJobs'], ids=lambda job: job['name'])
def test_jobs_have_the_fields_and_types_of_kubernetes(job) -> None:
    # The package carries the schemas that Kubernetes publishes.
    manifest = {'apiVersion': 'batch/v1', 'kind': 'Job', 'metadata': {'name': job['name']}, **job['template']}
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
    wrong = {**manifest, 'spec': {**manifest['spec'], 'completions': 'two'}}
    with pytest.raises(kubernetes_validate.ValidationError, match='completions'):
        kubernetes_validate.validate(wrong, kubernetes_validate.latest_version(), strict=True)


def test_the_decode_servers_are_those_that_the_flags_of_the_trainer_name() -> None:
    text = (LAUNCH / 'decode.yaml').read_text()
    servers = yaml.safe_load(text)
    spec, name = servers['spec'], servers['metadata']['name']
    assert (servers['apiVersion'], servers['kind']) == ('leaderworkerset.x-k8s.io/v1', 'LeaderWorkerSet')
    # The fields of LeaderWorkerSet's own types; the template is Kubernetes'.
    assert (set(spec), set(spec['leaderWorkerTemplate'])) == (
        {'replicas', 'leaderWorkerTemplate'},
        {'size', 'workerTemplate'},
    )
    pod = {
        'apiVersion': 'v1',
        'kind': 'Pod',
        'metadata': {'name': name},
        **spec['leaderWorkerTemplate']['workerTemplate'],
    }
    kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)
    # These servers and those beside a trainer run alike.
    (container,) = pod['spec']['containers']
    assert {key: x for key, x in container.items() if key != 'livenessProbe'} == CONTAINERS['decode']
    # The leader of a replica has its number, below the service of the set's name.
    port = container['ports'][0]['containerPort']
    hosts = [f'{name}-{i}.{name}:{port}' for i in range(spec['replicas'])]
    flags = re.findall(r'--[\w.]+=\S+', next(line for line in text.splitlines() if '--config.decode.address' in line))
    assert f'--config.decode.address={",".join(hosts)}' in flags
    check_command('pal_jax.train', flags)


def test_the_image_knows_the_extras_it_names() -> None:
    extras = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['optional-dependencies']
    text = (LAUNCH / 'Dockerfile').read_text()
    default, named = re.search(r'^ARG accelerator=(\w+)$', text, re.M), re.search(r'\(or ([\w, ]+)\)', text)
    assert default and named
    assert {default[1], *re.split(r'\W+', named[1])} <= set(extras)


@pytest.mark.parametrize('script', sorted(LAUNCH.glob('*.sh')), ids=lambda path: path.name)
def test_scripts_parse_and_their_examples_exist(script) -> None:
    subprocess.run(['bash', '-n', script], check=True)
    assert os.access(script, os.X_OK)
    for line in script.read_text().splitlines():
        if line.startswith('#') and '--config=' in line:
            ours = line.partition(f'{script.name} ')[2]  # what stands before it is sbatch's
            check_command('pal_jax.train', re.findall(r'--[\w.]+=[\w./:-]+', ours))


def test_the_tpu_script_runs_one_command_on_every_host(tmp_path) -> None:
    fake = tmp_path / 'gcloud'
    fake.write_text('#!/bin/sh\nfor each in "$@"; do echo "$each"; done\n')
    fake.chmod(0o755)
    here = {'PATH': f'{tmp_path}:{os.environ["PATH"]}'}

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([LAUNCH / 'tpu_vm.sh', *arguments], env=here, capture_output=True, text=True, check=False)

    done = call('slice', 'zone', 'cd pal_jax && make', 'ARGS=x')
    assert done.stdout.splitlines()[-3:] == ['--zone=zone', '--worker=all', '--command=cd pal_jax && make ARGS=x']
    assert call('slice').returncode == 1
    assert call('slice', 'zone').returncode == 2
