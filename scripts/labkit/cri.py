# SPDX-License-Identifier: Apache-2.0
"""A minimal client of the container runtime interface (runtime.v1).

The messages are built at import time from the table below, so neither protoc nor generated code is needed; Debian's protobuf refuses
code of other versions anyway. Field numbers are those of kubernetes/cri-api, runtime/v1/api.proto. In the table `*T` is a repeated T
and `map` a map of strings to strings.
"""
from __future__ import annotations

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.message import Message

Field = descriptor_pb2.FieldDescriptorProto
PACKAGE = "runtime.v1"
SCALARS = {"string": Field.TYPE_STRING, "bool": Field.TYPE_BOOL, "int32": Field.TYPE_INT32, "int64": Field.TYPE_INT64,
           "uint32": Field.TYPE_UINT32, "bytes": Field.TYPE_BYTES}
ENUMS = {
    "Protocol": ["TCP", "UDP", "SCTP"],
    "PodSandboxState": ["SANDBOX_READY", "SANDBOX_NOTREADY"],
    "ContainerState": ["CONTAINER_CREATED", "CONTAINER_RUNNING", "CONTAINER_EXITED", "CONTAINER_UNKNOWN"],
}
MESSAGES = """
VersionRequest: version string 1
VersionResponse: version string 1, runtime_name string 2, runtime_version string 3
StatusRequest: verbose bool 1
StatusResponse: status RuntimeStatus 1, info map 2
RuntimeStatus: conditions *RuntimeCondition 1
RuntimeCondition: type string 1, status bool 2, reason string 3, message string 4
RunPodSandboxRequest: config PodSandboxConfig 1, runtime_handler string 2
RunPodSandboxResponse: pod_sandbox_id string 1
StopPodSandboxRequest: pod_sandbox_id string 1
StopPodSandboxResponse:
RemovePodSandboxRequest: pod_sandbox_id string 1
RemovePodSandboxResponse:
PodSandboxStatusRequest: pod_sandbox_id string 1, verbose bool 2
PodSandboxStatusResponse: status PodSandboxStatus 1, info map 2
ListPodSandboxRequest: filter PodSandboxFilter 1
ListPodSandboxResponse: items *PodSandbox 1
CreateContainerRequest: pod_sandbox_id string 1, config ContainerConfig 2, sandbox_config PodSandboxConfig 3
CreateContainerResponse: container_id string 1
StartContainerRequest: container_id string 1
StartContainerResponse:
ListContainersRequest: filter ContainerFilter 1
ListContainersResponse: containers *Container 1
ContainerStatusRequest: container_id string 1, verbose bool 2
ContainerStatusResponse: status ContainerStatus 1, info map 2
ExecSyncRequest: container_id string 1, cmd *string 2, timeout int64 3
ExecSyncResponse: stdout bytes 1, stderr bytes 2, exit_code int32 3
PodSandboxConfig: metadata PodSandboxMetadata 1, hostname string 2, log_directory string 3, port_mappings *PortMapping 5, labels map 6, annotations map 7, linux LinuxPodSandboxConfig 8
PodSandboxMetadata: name string 1, uid string 2, namespace string 3, attempt uint32 4
PortMapping: protocol Protocol 1, container_port int32 2, host_port int32 3, host_ip string 4
LinuxPodSandboxConfig: cgroup_parent string 1
PodSandboxStatus: id string 1, metadata PodSandboxMetadata 2, state PodSandboxState 3, network PodSandboxNetworkStatus 5, annotations map 8
PodSandboxNetworkStatus: ip string 1, additional_ips *PodIP 2
PodIP: ip string 1
PodSandboxFilter: id string 1
PodSandbox: id string 1, metadata PodSandboxMetadata 2, state PodSandboxState 3, annotations map 6
ContainerConfig: metadata ContainerMetadata 1, image ImageSpec 2, command *string 3, args *string 4, log_path string 11, linux LinuxContainerConfig 15
ContainerMetadata: name string 1, attempt uint32 2
ImageSpec: image string 1
LinuxContainerConfig: security_context LinuxContainerSecurityContext 2
LinuxContainerSecurityContext: capabilities Capability 1
Capability: add_capabilities *string 1
ContainerFilter: id string 1, pod_sandbox_id string 3
Container: id string 1, pod_sandbox_id string 2, metadata ContainerMetadata 3, state ContainerState 6
ContainerStatus: id string 1, metadata ContainerMetadata 2, state ContainerState 3, exit_code int32 7, reason string 10, message string 11
"""


def _add_field(message: descriptor_pb2.DescriptorProto, name: str, kind: str, number: str) -> None:
    repeated = kind.startswith("*") or kind == "map"
    field = message.field.add(name=name, number=int(number), label=Field.LABEL_REPEATED if repeated else Field.LABEL_OPTIONAL)
    kind = kind.lstrip("*")
    if kind in SCALARS:
        field.type = SCALARS[kind]
        return
    field.type = Field.TYPE_ENUM if kind in ENUMS else Field.TYPE_MESSAGE
    field.type_name = f".{PACKAGE}.{kind}"
    if kind == "map":       # on the wire: repeated entries of key and value
        entry = message.nested_type.add(name="".join(map(str.capitalize, name.split("_"))) + "Entry")
        entry.options.map_entry = True
        for index, key in enumerate(("key", "value"), 1):
            entry.field.add(name=key, number=index, type=Field.TYPE_STRING, label=Field.LABEL_OPTIONAL)
        field.type_name = f".{PACKAGE}.{message.name}.{entry.name}"


def _messages() -> dict[str, type[Message]]:
    file = descriptor_pb2.FileDescriptorProto(name="cri.proto", package=PACKAGE, syntax="proto3")
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    for line in MESSAGES.strip().splitlines():
        name, _, fields = line.partition(":")
        message = file.message_type.add(name=name)
        for field in filter(None, map(str.strip, fields.split(","))):
            _add_field(message, *field.split())
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    factory = message_factory.MessageFactory(pool)
    return {m.name: factory.GetPrototype(pool.FindMessageTypeByName(f"{PACKAGE}.{m.name}")) for m in file.message_type}


_MESSAGES = _messages()


class CriError(Exception):
    """The runtime refused a call. `details` is its message: for RunPodSandbox, what a user reads in the pod's events."""

    def __init__(self, method: str, error: grpc.RpcError):
        self.method, self.code, self.details = method, error.code().name, error.details() or ""
        super().__init__(f"{method}: {self.code}: {self.details}")


class Cri:
    """One connection to one runtime; safe to use from many threads."""

    # a local pool: channels would otherwise share a connection, and its back-off of seconds after the runtime was restarted
    OPTIONS = {"grpc.use_local_subchannel_pool": 1, "grpc.enable_http_proxy": 0, "grpc.max_receive_message_length": 64 << 20}

    def __init__(self, socket: str):
        assert socket.startswith("/") and len(socket) < 108, socket
        self.channel = grpc.insecure_channel(f"unix://{socket}", options=list(self.OPTIONS.items()))

    def call(self, method: str, *, timeout: float = 60, **fields) -> Message:
        """Call a method of RuntimeService; `fields` are those of its request, nested ones as dicts."""
        call = self.channel.unary_unary(f"/{PACKAGE}.RuntimeService/{method}", request_serializer=lambda request: request.SerializeToString(),
                                        response_deserializer=_MESSAGES[f"{method}Response"].FromString)
        try:
            return call(json_format.ParseDict(fields, _MESSAGES[f"{method}Request"]()), timeout=timeout)
        except grpc.RpcError as error:
            raise CriError(method, error) from None

    def close(self) -> None:
        self.channel.close()
