"""The files of docs/deploy: YAML against schemas, the script against bash, options against the command."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
import ray
import typer.main
import yaml

from kdbench.cli.app import app
from kdbench.grid.cluster import STORE_BYTES

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "docs/deploy"

# What KubeRay's custom resource definition (ray.io/v1, RayJob) asks of the fields that are used here.
QUANTITY = {"type": "string", "pattern": r"^[0-9]+(Mi|Gi)?$"}
POD = {
    "type": "object",
    "required": ["spec"],
    "properties": {
        "spec": {
            "type": "object",
            "required": ["containers"],
            "properties": {
                "tolerations": {"type": "array"},
                "containers": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "required": ["name", "image"],
                        "properties": {
                            "resources": {
                                "type": "object",
                                "additionalProperties": {"type": "object", "additionalProperties": QUANTITY},
                                "propertyNames": {"enum": ["requests", "limits"]},
                            },
                            "env": {"type": "array", "items": {"required": ["name", "value"]}},
                            "volumeMounts": {"type": "array", "items": {"required": ["name", "mountPath"]}},
                        },
                    },
                },
                "volumes": {"type": "array", "items": {"required": ["name"]}},
            },
        }
    },
}
GROUP = {"rayStartParams": {"type": "object", "additionalProperties": {"type": "string"}}, "template": POD}
RAYJOB = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayJob"},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["entrypoint", "rayClusterSpec"],
            "properties": {
                "entrypoint": {"type": "string"},
                "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
                "activeDeadlineSeconds": {"type": "integer", "minimum": 1},
                "shutdownAfterJobFinishes": {"type": "boolean"},
                "ttlSecondsAfterFinished": {"type": "integer", "minimum": 0},
                "backoffLimit": {"type": "integer", "minimum": 0},
                "rayClusterSpec": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["headGroupSpec"],
                    "properties": {
                        "rayVersion": {"type": "string"},
                        "headGroupSpec": {"type": "object", "required": ["template"], "properties": GROUP},
                        "workerGroupSpecs": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "required": ["groupName", "template", "maxReplicas", "minReplicas"],
                                "properties": GROUP,
                            },
                        },
                    },
                },
            },
        },
    },
}


def load(name: str) -> dict:
    return yaml.safe_load((DEPLOY / name).read_text())


def test_the_launcher_file_meets_the_schema_of_ray():
    schema = Path(ray.__file__).parent / "autoscaler/ray-schema.json"
    jsonschema.validate(load("launcher.yaml"), json.loads(schema.read_text()))


def test_the_rayjob_meets_the_schema_of_kuberay():
    jsonschema.validate(load("rayjob.yaml"), RAYJOB)


def test_the_rayjob_names_the_ray_that_the_image_has():
    lock = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().splitlines())
    assert load("rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"] == lock["ray"]


def test_the_object_store_fits_in_the_shared_memory_and_the_image_can_compile():
    cluster = load("rayjob.yaml")["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert {int(group["rayStartParams"]["object-store-memory"]) for group in groups} == {STORE_BYTES}
    (shm,) = (v for v in groups[0]["template"]["spec"]["volumes"] if v["name"] == "shm")
    assert int(shm["emptyDir"]["sizeLimit"].removesuffix("Gi")) << 30 > STORE_BYTES
    assert "g++" in (ROOT / "Dockerfile").read_text().rpartition("FROM ")[2]


def test_every_mount_has_its_volume():
    cluster = load("rayjob.yaml")["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_the_shell_script_is_bash():
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    subprocess.run(["bash", "-n", str(DEPLOY / "slurm.sh")], check=True)


@pytest.mark.parametrize("page", ["cluster.md", "deploy/rayjob.yaml", "deploy/slurm.sh"])
def test_every_option_that_is_named_exists(page):
    command = typer.main.get_command(app).commands["run"]
    known = {
        option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
    }
    text = (ROOT / "docs" / page).read_text().replace("\\\n", " ")
    used = {o for line in re.findall(r"kdbench run ([^`\n]*)", text) for o in re.findall(r"--[a-z-]+", line)}
    assert used
    assert used <= known


def test_the_image_is_built_from_files_that_exist():
    copied = re.findall(r"^COPY (?!--from)(\S+)", (ROOT / "Dockerfile").read_text(), re.M)
    assert copied == [".", "requirements.lock"]
    assert all((ROOT / name).exists() for name in copied)
