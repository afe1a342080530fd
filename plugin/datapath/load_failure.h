// SPDX-License-Identifier: Apache-2.0
// Why the kernel refused the BPF programs, in words that say what to do. The kernel and libbpf say the same ("not
// found", "not permitted") of a module that is not loaded and of a capability that the process does not have.
#pragma once

#include <cstdint>
#include <string>

namespace egressclass {

/// Where a function of the kernel that the programs call is.
enum class KernelFunction : std::uint8_t { kBuiltIn, kInModule, kMissing };

struct LoadCircumstances {
  bool kernel_btf = true;                                       // /sys/kernel/btf/vmlinux is there
  KernelFunction conntrack = KernelFunction::kBuiltIn;          // those of nf_conntrack
  KernelFunction nat = KernelFunction::kBuiltIn;                // those of nf_nat
  std::uint64_t capabilities = ~static_cast<std::uint64_t>(0);  // effective ones of this process, a bit for each
};

/// What to do about it; "" when these circumstances are no reason for a refusal.
std::string load_remedy(const LoadCircumstances& circumstances);

/// The same for this process on this kernel, and what libbpf said.
std::string load_failure_hint(const std::string& libbpf_said);

}  // namespace egressclass
