"""Jobs for clusters: what can be known of them without one."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from absl.testing import flagsaver
from support import ROOT

from sweeps.command import app
from sweeps.convergence_map.study import ConvergenceMap

SCRIPTS = ROOT / "scripts"
SHELL = [
    SCRIPTS / "environment",
    *(path for path in sorted(SCRIPTS.iterdir()) if path.is_file() and b"bash" in path.read_bytes().splitlines()[0]),
]
POD = {"JOB_COMPLETION_INDEX": "3"}
JOB = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_CPUS_PER_TASK": "8"}


def read(words):
    """The study and execution that a command's words make; they are all allowed."""
    with flagsaver.flagsaver():
        values = app.flag_values(ConvergenceMap)
        assert app._parse(values, ["convergence_map", *words]) == ["convergence_map"]
        return app._read(ConvergenceMap, values)


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_shell_scripts(path):
    subprocess.run(["bash", "-n", path], check=True)
    shellcheck = Path(sys.executable).parent / "shellcheck"
    words = [shellcheck, "--shell=bash", "--external-sources", "--source-path=SCRIPTDIR", "--source-path=.", path]
    found = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_all_of_them_are_looked_at():
    assert {path.name for path in SHELL} >= {"check", "demo", "docs", "environment", "slurm_array", "slurm_processes"}
    assert all(os.access(path, os.X_OK) for path in SHELL[1:])


def of_slurm(name):
    """The options of a job, and the words of the command that it ends with."""
    text = (SCRIPTS / name).read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", text, flags=re.MULTILINE))
    (command,) = re.findall(r"^exec ((?:.*\\\n)*.*)$", text, flags=re.MULTILINE)
    for variable, value in JOB.items():
        command = command.replace(f'"${variable}"', value)
    before, _, words = command.replace("\\\n", " ").partition("python -m sweeps.convergence_map ")
    *words, further = shlex.split(words)
    assert further == "$@"
    return options, before.split(), words


def test_the_job_array():
    options, before, words = of_slurm("slurm_array")
    _, execution = read(words)
    first, last = map(int, options["array"].split("-"))
    assert (first, last + 1) == (0, execution.shard_count)
    assert (execution.shard_index, execution.coordinator, before) == (3, "", [])
    assert options["signal"].startswith("B:TERM@")  # Its one process takes the place of the shell.


def test_the_job_of_several_processes():
    options, before, words = of_slurm("slurm_processes")
    _, execution = read(words)
    assert execution.coordinator == "auto"
    assert int(options["ntasks"]) > 1
    assert before == ["srun", "--cpus-per-task=8", "--kill-on-bad-exit=1"]
    assert options["signal"].startswith("TERM@")


def test_the_job_of_kubernetes():
    """What `jax._src.clusters.k8s_cluster` asks for."""
    text = (SCRIPTS / "kubernetes_job.yaml").read_text()
    known = {document["kind"]: document for document in yaml.safe_load_all(text)}
    assert set(known) == {"ServiceAccount", "Role", "RoleBinding", "Service", "Job"}
    name, job, service = known["Job"]["metadata"]["name"], known["Job"]["spec"], known["Service"]
    assert known["Job"]["metadata"]["labels"]
    assert job["completionMode"] == "Indexed"
    assert job["completions"] == job["parallelism"] > 1
    pod = job["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"] == {
        "clusterIP": "None", "publishNotReadyAddresses": True, "selector": {"job-name": name}
    }  # fmt: skip
    account = known["ServiceAccount"]["metadata"]["name"]
    assert pod["serviceAccountName"] == account
    assert known["RoleBinding"]["subjects"] == [{"kind": "ServiceAccount", "name": account}]
    assert known["RoleBinding"]["roleRef"]["name"] == known["Role"]["metadata"]["name"]
    allowed = {
        (group, resource, verb)
        for rule in known["Role"]["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert allowed >= {("", "pods", "list"), ("", "services", "list"), ("batch", "jobs", "get")}
    (container,) = pod["containers"]
    python, dash_m, module, *words = container["command"]
    assert (python, dash_m, module) == ("python", "-m", "sweeps.convergence_map")
    _, execution = read(words)
    assert execution.coordinator == "auto"
    (mount,) = container["volumeMounts"]
    assert execution.out.is_relative_to(mount["mountPath"])
    assert [volume["name"] for volume in pod["volumes"]] == [mount["name"]]
    assert pod["restartPolicy"] == "Never"
    # And the way without JAX's coordinator, which a comment shows.
    instead = re.findall(r"--shard_\w+=\S+", text)
    words = [word.replace("$(JOB_COMPLETION_INDEX)", POD["JOB_COMPLETION_INDEX"]) for word in instead]
    _, execution = read(["--out=x", *words])
    assert (execution.shard_index, execution.shard_count) == (3, job["completions"])
