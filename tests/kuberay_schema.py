"""JSON Schema of KubeRay's RayCluster and RayJob: the fields that its reference of the API names
(v1; docs/reference/api.md there), and of a pod those that our manifests use. No package of the
registries carries KubeRay's own."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "integer"}
FLAG: Schema = {"type": "boolean"}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}
ANY: Schema = {"type": "object"}
QUANTITY: Schema = {"type": "string", "pattern": r"^[0-9.]+(m|[KMGT]i?)?$"}
NAME: Schema = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"}


def record(required: str = "", **fields: Schema) -> Schema:
    """An object of these fields alone."""
    return {
        "type": "object",
        "properties": fields,
        "required": required.split(),
        "additionalProperties": False,
    }


def items(schema: Schema) -> Schema:
    """A list that isn't empty."""
    return {"type": "array", "items": schema, "minItems": 1}


def choice(*words: str) -> Schema:
    """One of some words."""
    return {"enum": list(words)}


AMOUNTS: Schema = {"type": "object", "additionalProperties": QUANTITY}
CONTAINER = record(
    "name image",
    name=NAME,
    image=TEXT,
    env=items(record("name", name=TEXT, value=TEXT, valueFrom=ANY)),
    ports=items(record("containerPort", containerPort=NUMBER, name=NAME, protocol=TEXT)),
    resources=record(limits=AMOUNTS, requests=AMOUNTS),
    volumeMounts=items(
        record("name mountPath", name=NAME, mountPath=TEXT, subPath=TEXT, readOnly=FLAG)
    ),
    command=items(TEXT),
    args=items(TEXT),
    imagePullPolicy=choice("Always", "IfNotPresent", "Never"),
)
VOLUME = record(
    "name",
    name=NAME,
    persistentVolumeClaim=record("claimName", claimName=NAME, readOnly=FLAG),
    emptyDir=record(medium=choice("", "Memory"), sizeLimit=QUANTITY),
)
POD = record(
    "spec",
    metadata=record(labels=TEXTS, annotations=TEXTS),
    spec=record(
        "containers",
        containers=items(CONTAINER),
        volumes=items(VOLUME),
        nodeSelector=TEXTS,
        tolerations=items(ANY),
        serviceAccountName=TEXT,
        restartPolicy=choice("Always", "OnFailure", "Never"),
        imagePullSecrets=items(record("name", name=TEXT)),
    ),
)
HEAD_GROUP = record(
    "template",
    template=POD,
    rayStartParams=TEXTS,
    labels=TEXTS,
    resources=TEXTS,
    headService=ANY,
    enableIngress=FLAG,
    ingressOptions=ANY,
    serviceType=choice("ClusterIP", "NodePort", "LoadBalancer"),
)
WORKER_GROUP = record(
    "groupName maxReplicas minReplicas template",
    groupName=NAME,
    template=POD,
    rayStartParams=TEXTS,
    labels=TEXTS,
    resources=TEXTS,
    replicas=NUMBER,
    minReplicas=NUMBER,
    maxReplicas=NUMBER,
    numOfHosts=NUMBER,
    priority=NUMBER,
    idleTimeoutSeconds=NUMBER,
    suspend=FLAG,
    scaleStrategy=ANY,
)
CLUSTER_SPEC = record(
    "headGroupSpec",
    rayVersion={"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
    authOptions=record(mode=choice("disabled", "token"), secretName=NAME, enableK8sTokenAuth=FLAG),
    headGroupSpec=HEAD_GROUP,
    workerGroupSpecs=items(WORKER_GROUP),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=ANY,
    gcsFaultToleranceOptions=ANY,
    headServiceAnnotations=TEXTS,
    historyServerOptions=ANY,
    managedBy=TEXT,
    networkPolicy=ANY,
    suspend=FLAG,
    tlsOptions=ANY,
    upgradeStrategy=ANY,
)
JOB_SPEC = record(
    entrypoint=TEXT,
    entrypointNumCpus={"type": "number"},
    entrypointNumGpus={"type": "number"},
    entrypointResources=TEXT,
    runtimeEnvYAML=TEXT,
    rayClusterSpec=CLUSTER_SPEC,
    clusterSelector=TEXTS,
    jobId=TEXT,
    metadata=TEXTS,
    submissionMode=choice("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    submitterConfig=record(backoffLimit=NUMBER),
    submitterPodTemplate=POD,
    backoffLimit=NUMBER,
    activeDeadlineSeconds=NUMBER,
    preRunningDeadlineSeconds=NUMBER,
    ttlSecondsAfterFinished=NUMBER,
    shutdownAfterJobFinishes=FLAG,
    deletionStrategy=ANY,
    suspend=FLAG,
    managedBy=TEXT,
)
SCHEMAS = {
    kind: record(
        "apiVersion kind metadata spec",
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=record("name", name=NAME, namespace=NAME, labels=TEXTS, annotations=TEXTS),
        spec=spec,
    )
    for kind, spec in (("RayCluster", CLUSTER_SPEC), ("RayJob", JOB_SPEC))
}
