// SPDX-License-Identifier: Apache-2.0
// Where things are on a node.
#pragma once

namespace egressclass::paths {

inline constexpr const char* kRunDir = "/run/egressclass";
inline constexpr const char* kLock = "/run/egressclass/lock";
inline constexpr const char* kLockGate = "/run/egressclass/lock.gate";
inline constexpr const char* kAppliedConfig = "/run/egressclass/config.json";    // the text last applied
inline constexpr const char* kAppliedClasses = "/run/egressclass/classes.json";  // what the plugin reads of it
inline constexpr const char* kSystemChanges = "/run/egressclass/system.json";    // what `down` has to put back
inline constexpr const char* kIntegrity = "/run/egressclass/integrity.json";     // by integrity.h
inline constexpr const char* kPrograms = "/run/egressclass/programs";            // what is pinned, by programs.h
inline constexpr const char* kExpedited = "/run/egressclass/expedited";          // by expedite.h
inline constexpr const char* kAttachments = "/run/egressclass/attachments";

inline constexpr const char* kLibDir = "/var/lib/egressclass";
inline constexpr const char* kLastClasses = "/var/lib/egressclass/classes.json";  // kAppliedClasses, kept over a boot

inline constexpr const char* kBpffs = "/sys/fs/bpf";
inline constexpr const char* kPins = "/sys/fs/bpf/egressclass";
inline constexpr const char* kMapPins = "/sys/fs/bpf/egressclass/maps";
inline constexpr const char* kProgramPins = "/sys/fs/bpf/egressclass/programs";
inline constexpr const char* kLinkPins = "/sys/fs/bpf/egressclass/links";  // by ifindex

inline constexpr const char* kGatewayNetns = "/run/netns/egressclass";
inline constexpr const char* kGatewayDevice = "ec0";  // leads into it
inline constexpr const char* kTunnelDevice = "egress0";

}  // namespace egressclass::paths
