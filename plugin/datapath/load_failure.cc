// SPDX-License-Identifier: Apache-2.0
#include "datapath/load_failure.h"

#include <bpf/btf.h>
#include <linux/capability.h>
#include <unistd.h>

#include <charconv>
#include <utility>

#include "util/c_handle.h"
#include "util/file.h"

namespace egressclass {
namespace {

constexpr const char* kKernelBtf = "/sys/kernel/btf/vmlinux";
constexpr const char* kConntrack = "nf_conntrack";
constexpr const char* kNat = "nf_nat";

constexpr std::uint64_t bit(unsigned capability) { return static_cast<std::uint64_t>(1) << capability; }

std::string& append(std::string& list, const char* word) { return list.append(list.empty() ? "" : " ").append(word); }

std::string missing_modules(const LoadCircumstances& c) {
  std::string missing;
  if (c.conntrack == KernelFunction::kMissing) append(missing, kConntrack);
  if (c.nat == KernelFunction::kMissing) append(missing, kNat);
  return missing;
}

/// For loading programs CAP_SYS_ADMIN has the others in it.
std::string missing_capabilities(const LoadCircumstances& c) {
  if ((c.capabilities & bit(CAP_SYS_ADMIN)) != 0) return {};
  std::string missing;
  for (const auto& [capability, name] : {std::pair(CAP_BPF, "CAP_BPF"), std::pair(CAP_PERFMON, "CAP_PERFMON"),
                                         std::pair(CAP_NET_ADMIN, "CAP_NET_ADMIN")})
    if ((c.capabilities & bit(static_cast<unsigned>(capability))) == 0) append(missing, name);
  if (c.conntrack != KernelFunction::kBuiltIn || c.nat != KernelFunction::kBuiltIn) append(missing, "CAP_SYS_ADMIN");
  return missing;
}

using Btf = CHandle<btf, btf__free>;

KernelFunction find(const btf* kernel, const char* function, const char* module) {
  if (kernel != nullptr && btf__find_by_name_kind(kernel, function, BTF_KIND_FUNC) > 0) return KernelFunction::kBuiltIn;
  const std::string of_module = std::string("/sys/kernel/btf/") + module;
  return ::access(of_module.c_str(), F_OK) == 0 ? KernelFunction::kInModule : KernelFunction::kMissing;
}

/// All of them when they cannot be read: then nothing is said of them.
std::uint64_t effective_capabilities() {
  constexpr std::uint64_t kAll = ~static_cast<std::uint64_t>(0);
  constexpr std::size_t kMaxBytes = 64U << 10U;
  const auto status = read_file("/proc/self/status", kMaxBytes);
  if (!status || !*status) return kAll;
  const std::string& text = **status;
  constexpr std::string_view kLabel = "\nCapEff:\t";
  const std::size_t at = text.find(kLabel);
  if (at == std::string::npos) return kAll;
  std::uint64_t value = kAll;
  constexpr int kHex = 16;
  std::from_chars(text.data() + at + kLabel.size(), text.data() + text.size(), value, kHex);
  return value;
}

LoadCircumstances this_process() {
  const Btf kernel(btf__parse(kKernelBtf, nullptr));
  return {.kernel_btf = static_cast<bool>(kernel),
          .conntrack = find(kernel.get(), "bpf_ct_insert_entry", kConntrack),
          .nat = find(kernel.get(), "bpf_ct_set_nat_info", kNat),
          .capabilities = effective_capabilities()};
}

}  // namespace

std::string load_remedy(const LoadCircumstances& circumstances) {
  if (!circumstances.kernel_btf)
    return std::string("there is no ") + kKernelBtf + ": the kernel was built without CONFIG_DEBUG_INFO_BTF";
  std::string remedy;
  if (const std::string modules = missing_modules(circumstances); !modules.empty())
    remedy = "a kernel module is missing: " + modules + " (with its BTF); run `modprobe -a " + modules +
             "`, and name it in /etc/modules-load.d for the next boot";
  if (const std::string capabilities = missing_capabilities(circumstances); !capabilities.empty()) {
    remedy += (remedy.empty() ? "" : "; ") + std::string("this process lacks ") + capabilities;
    if (capabilities.ends_with("CAP_SYS_ADMIN"))
      remedy += ", without which the kernel shows nobody the BTF of nf_conntrack and nf_nat, which are modules here";
    remedy += "; run it as root, or under systemd with that in CapabilityBoundingSet=";
  }
  return remedy;
}

std::string load_failure_hint(const std::string& libbpf_said) {
  const std::string remedy = load_remedy(this_process());
  return (remedy.empty() ? "needed: kernel 6.6 or newer with BTF, nf_conntrack and nf_nat" : remedy) +
         "; libbpf says: " + libbpf_said;
}

}  // namespace egressclass
