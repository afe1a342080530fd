// SPDX-License-Identifier: Apache-2.0
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "core/plan.h"
#include "ctl/commands.h"
#include "ctl/config_file.h"
#include "datapath/attachment_store.h"
#include "datapath/node_datapath.h"

namespace egressclass::ctl {
namespace {

/// Whether the file is about this machine at all. One that checks files for others is none of the nodes.
bool is_node(const Config& config, const NodeFacts& facts) {
  return std::ranges::any_of(facts.addresses, [&](const NodeFacts::Address& address) {
    return std::ranges::any_of(config.nodes, [&](const Prefix& p) { return p.contains(address.ip); });
  });
}

/// For who cannot read which egress IPs are here since an earlier apply: any may be.
void assume_held(const Config& config, NodeFacts& facts) {
  for (const ClassConfig& c : config.classes)
    for (const Gateway& gateway : c.gateways) facts.held.insert(gateway.egress_ips.begin(), gateway.egress_ips.end());
}

}  // namespace

int check(const std::string& file) {
  const auto read = read_config_file(file);
  if (const int* code = std::get_if<int>(&read)) return *code;
  const Config& config = std::get<ConfigFile>(read).config;

  const bool root = ::geteuid() == 0;
  auto facts = root ? gather_facts(list_attachments()) : gather_public_facts();
  if (!facts) return fail(facts.error());
  if (!is_node(config, *facts)) {
    std::printf("%s: good; not checked against this machine, which is none of its nodes\n", file.c_str());
    return kSuccess;
  }
  if (!root) assume_held(config, *facts);
  std::vector<ConfigProblem> problems;
  if (!make_plan(config, *facts, &problems)) return refuse(file, problems);
  std::printf("%s: good for this node%s\n", file.c_str(),
              root ? "" : "; not checked, since only root can: which marks and addresses its running pods have");
  return kSuccess;
}

}  // namespace egressclass::ctl
