// SPDX-License-Identifier: Apache-2.0
#include "datapath/load_failure.h"

#include <gtest/gtest.h>
#include <linux/capability.h>

namespace egressclass {
namespace {

using enum KernelFunction;

template <class... Capabilities>
std::uint64_t without(Capabilities... capabilities) {
  return ~((std::uint64_t{1} << static_cast<unsigned>(capabilities)) | ...);
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TEST(LoadFailure, NothingToSayWhenAllIsThere) {
  EXPECT_EQ(load_remedy({}), "");
  EXPECT_EQ(load_remedy({.conntrack = kInModule, .nat = kInModule}), "");
}

TEST(LoadFailure, NamesTheModulesThatAreMissing) {
  const std::string both = load_remedy({.conntrack = kMissing, .nat = kMissing});
  EXPECT_TRUE(has(both, "`modprobe -a nf_conntrack nf_nat`")) << both;
  EXPECT_TRUE(has(both, "/etc/modules-load.d")) << both;
  EXPECT_FALSE(has(both, "CAP_")) << both;
  const std::string one = load_remedy({.conntrack = kInModule, .nat = kMissing});
  EXPECT_TRUE(has(one, "`modprobe -a nf_nat`")) << one;
}

TEST(LoadFailure, ModulesNeedOneCapabilityMore) {
  const auto unprivileged = without(CAP_SYS_ADMIN);
  EXPECT_EQ(load_remedy({.capabilities = unprivileged}), "");  // built in
  const std::string said = load_remedy({.conntrack = kInModule, .nat = kInModule, .capabilities = unprivileged});
  EXPECT_TRUE(has(said, "lacks CAP_SYS_ADMIN")) << said;
  EXPECT_TRUE(has(said, "CapabilityBoundingSet=")) << said;
  EXPECT_FALSE(has(said, "modprobe")) << said;
}

TEST(LoadFailure, NamesEachCapabilityThatIsMissing) {
  EXPECT_TRUE(has(load_remedy({.capabilities = without(CAP_BPF, CAP_SYS_ADMIN)}), "lacks CAP_BPF;"));
  EXPECT_TRUE(has(load_remedy({.capabilities = without(CAP_PERFMON, CAP_SYS_ADMIN)}), "lacks CAP_PERFMON;"));
  EXPECT_TRUE(has(load_remedy({.capabilities = without(CAP_NET_ADMIN, CAP_SYS_ADMIN)}), "lacks CAP_NET_ADMIN;"));
  EXPECT_EQ(load_remedy({.capabilities = without(CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN)}), "");  // CAP_SYS_ADMIN has them
}

TEST(LoadFailure, BothAtOnce) {
  const std::string said = load_remedy({.nat = kMissing, .capabilities = 0});
  EXPECT_TRUE(has(said, "modprobe -a nf_nat")) << said;
  EXPECT_TRUE(has(said, "lacks CAP_BPF CAP_PERFMON CAP_NET_ADMIN CAP_SYS_ADMIN,")) << said;
}

TEST(LoadFailure, KernelWithoutBtf) {
  EXPECT_TRUE(has(load_remedy({.kernel_btf = false, .conntrack = kMissing, .nat = kMissing}), "CONFIG_DEBUG_INFO_BTF"));
}

TEST(LoadFailure, KeepsTheWordsOfLibbpf) {
  EXPECT_TRUE(has(load_failure_hint("libbpf: extern x"), "libbpf: extern x"));
}

}  // namespace
}  // namespace egressclass
