// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/config.h"
#include "core/plan.h"
#include "ctl/commands.h"
#include "ctl/config_file.h"
#include "ctl/drift.h"
#include "ctl/takeover.h"
#include "datapath/announce.h"
#include "datapath/attachment_store.h"
#include "datapath/netlink.h"
#include "datapath/node_datapath.h"
#include "datapath/orphans.h"
#include "datapath/paths.h"
#include "datapath/state_room.h"
#include "util/file.h"
#include "util/lock.h"
#include "util/spare_file.h"
#include "util/text.h"

namespace egressclass::ctl {
namespace {

/// A neighbour that was not told will find out by asking: nothing to undo an apply for.
void announce(const Plan& plan) {
  if (auto announced = announce_egress_ips(plan); !announced)
    std::fprintf(stderr, "egressctl: warning: %s: %s\n", announced.error().msg.c_str(),
                 announced.error().details.c_str());
  announce_again(plan);
}

/// Back to the configuration that was in force, or to none.
void roll_back(const std::optional<std::string>& previous, const Programs& programs) {
  std::vector<ConfigProblem> problems;
  const auto config = previous ? parse_config(*previous, &problems) : std::nullopt;
  const auto attachments = list_attachments();
  auto facts = gather_facts(attachments);
  const auto plan = config && facts ? make_plan(*config, *facts, &problems) : std::nullopt;
  if (plan) {
    auto rulesets = fit(*plan);
    if (rulesets && realize(*plan, programs, std::move(*rulesets), attachments)) {
      announce(*plan);
      std::fprintf(stderr, "egressctl: the configuration that was in force before is in force again\n");
      return;
    }
  }
  auto down = tear_down();
  if (!down) fail(down.error());
  std::fprintf(stderr, "egressctl: %s\n",
               down ? "no configuration is in force; traffic of pods with a class is dropped"
                    : "and removing the rest failed too; traffic of pods with a class is dropped");
}

void report(const Plan& plan, const std::vector<Reclassed>& pods) {
  std::size_t local = 0;
  for (const PlannedClass& c : plan.classes) local += c.slots.empty() ? 0 : 1;
  const auto& underlay = plan.underlay4 ? plan.underlay4 : plan.underlay6;
  std::printf("applied: %zu classes, this node (%s) is the gateway of %zu\n", plan.classes.size(),
              underlay ? underlay->ip.str().c_str() : "-", local);
  for (const auto& [pod, before] : pods)
    std::printf("pod %s/%s: class %s, before %s\n", printable(pod.pod.name_space).c_str(),
                printable(pod.pod.name).c_str(), pod.class_name.c_str(), before.c_str());
}

/// What is in force, and still does not do all that it says.
void warn(const Config& config, const Plan& plan, const std::vector<Attachment>& attachments) {
  std::vector<std::string> lines = lacks(config, plan);
  if (auto netlink = Netlink::open())
    if (auto orphans = find_orphans(*netlink, attachments))
      for (const Orphan& orphan : *orphans)
        if (!orphan.host_veth.empty()) lines.push_back(orphan.text());
  for (const std::string& line : lines) std::printf("warning: %s\n", line.c_str());
}

}  // namespace

int apply(const std::string& file) {
  const auto read = read_config_file(file);
  if (const int* code = std::get_if<int>(&read)) return *code;
  const auto& [text, config] = std::get<ConfigFile>(read);

  const auto lock = lock_node(LockMode::kExclusive);
  if (!lock) return fail(lock.error());
  const auto attachments = list_attachments();
  auto facts = gather_facts(attachments);
  if (!facts) return fail(facts.error());
  std::vector<ConfigProblem> problems;
  const auto plan = make_plan(config, *facts, &problems);
  if (!plan) return refuse(file, problems);
  auto previous = read_file(paths::kAppliedConfig, kMaxConfigBytes);
  if (!previous) return fail(previous.error());
  if (problems = held_by_others(*plan, *facts, *previous); !problems.empty()) return refuse(file, problems);
  if (auto room = reserve_state(*plan, text); !room) {
    fail(room.error());
    std::fprintf(stderr, "egressctl: nothing was changed\n");
    return kFailure;
  }
  auto programs = install_programs();
  if (!programs) return fail(programs.error());
  auto rulesets = fit(*plan);
  if (!rulesets && *previous) {
    fail(rulesets.error());
    std::fprintf(stderr, "egressctl: nothing was changed\n");
    return kFailure;
  }
  using Pods = std::vector<Reclassed>;
  auto pods = rulesets ? realize(*plan, *programs, std::move(*rulesets), attachments) : Result<Pods>(rulesets.error());
  const auto done = pods ? write_reserved(paths::kAppliedConfig, text) : Status(pods.error());
  if (!done) {
    fail(done.error());
    roll_back(*previous, *programs);
    return kFailure;
  }
  announce(*plan);
  report(*plan, *pods);
  warn(config, *plan, attachments);
  return kSuccess;
}

}  // namespace egressclass::ctl
