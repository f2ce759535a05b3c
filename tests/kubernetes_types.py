"""Manifests held against the types of what reads them: Kubernetes' own (lightkube), and KubeRay's, below.

KubeRay's are the Ray part of its CRD: names, types and choices as in ray-operator/config/crd/bases/
ray.io_raycronjobs.yaml, whose jobTemplate is a RayJob's spec, and in ray-operator/apis/ray/v1 of
github.com/ray-project/kuberay (Apache-2.0), commit 0074504f84f22d26df800ebcd2e0a3e1490e2aef. Written out here, as the
file itself is 724 kB of Kubernetes' pod template, four times over.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from lightkube.models.batch_v1 import CronJob, Job
from lightkube.models.core_v1 import (
    ConfigMap,
    EnvFromSource,
    EnvVar,
    PodTemplateSpec,
    ResourceRequirements,
    SecurityContext,
    Service,
    ServiceAccount,
    VolumeMount,
)
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.models.rbac_v1 import Role, RoleBinding

ManagedBy = Literal["ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue"]


class Struct(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    pass


class AuthOptions(Struct):
    mode: Literal["disabled", "token"] | None = None


class AutoscalerOptions(Struct):
    resources: ResourceRequirements | None = None
    image: str | None = None
    imagePullPolicy: str | None = None
    securityContext: SecurityContext | None = None
    idleTimeoutSeconds: int | None = None
    upscalingMode: Literal["Default", "Aggressive", "Conservative"] | None = None
    env: list[EnvVar] | None = None
    envFrom: list[EnvFromSource] | None = None
    volumeMounts: list[VolumeMount] | None = None


class HeadGroupSpec(Struct):
    template: PodTemplateSpec
    rayStartParams: dict[str, str]
    headService: Service | None = None
    enableIngress: bool | None = None
    serviceType: str | None = None


class WorkerGroupSpec(Struct):
    groupName: str
    minReplicas: int
    maxReplicas: int
    rayStartParams: dict[str, str]
    template: PodTemplateSpec
    suspend: bool | None = None
    replicas: int | None = None
    idleTimeoutSeconds: int | None = None
    scaleStrategy: dict[str, list[str]] | None = None
    numOfHosts: int | None = None


class RayClusterSpec(Struct):
    headGroupSpec: HeadGroupSpec
    suspend: bool | None = None
    managedBy: ManagedBy | None = None
    authOptions: AuthOptions | None = None
    autoscalerOptions: AutoscalerOptions | None = None
    headServiceAnnotations: dict[str, str] | None = None
    enableInTreeAutoscaling: bool | None = None
    gcsFaultToleranceOptions: dict[str, Any] | None = None
    rayVersion: str | None = None
    workerGroupSpecs: list[WorkerGroupSpec] | None = None


class SubmitterConfig(Struct):
    backoffLimit: int | None = None


class RayJobSpec(Struct):
    activeDeadlineSeconds: int | None = None
    backoffLimit: int | None = None
    rayClusterSpec: RayClusterSpec | None = None
    submitterPodTemplate: PodTemplateSpec | None = None
    metadata: dict[str, str] | None = None
    clusterSelector: dict[str, str] | None = None
    submitterConfig: SubmitterConfig | None = None
    managedBy: ManagedBy | None = None
    deletionStrategy: dict[str, Any] | None = None
    entrypoint: str | None = None
    runtimeEnvYAML: str | None = None
    jobId: str | None = None
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"] | None = None
    entrypointResources: str | None = None
    entrypointNumCpus: float | None = None
    entrypointNumGpus: float | None = None
    ttlSecondsAfterFinished: int | None = None
    shutdownAfterJobFinishes: bool | None = None
    suspend: bool | None = None


class RayJob(Struct):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: ObjectMeta
    spec: RayJobSpec


KINDS: dict[tuple[str, str], Any] = {
    ("v1", "ConfigMap"): ConfigMap,
    ("v1", "ServiceAccount"): ServiceAccount,
    ("batch/v1", "Job"): Job,
    ("batch/v1", "CronJob"): CronJob,
    ("ray.io/v1", "RayJob"): RayJob,
    ("rbac.authorization.k8s.io/v1", "Role"): Role,
    ("rbac.authorization.k8s.io/v1", "RoleBinding"): RoleBinding,
}


def check(document: dict[str, Any]) -> None:
    """`document` is of its kind: nothing missing, of another type, or unknown, which a round trip would lose."""
    kind = KINDS[document["apiVersion"], document["kind"]]
    assert msgspec.to_builtins(msgspec.convert(document, kind)) == document
