// SPDX-License-Identifier: Apache-2.0
#include <netinet/in.h>

#include <cstdio>
#include <string>

#include "audit/search.h"
#include "core/config.h"
#include "core/target.h"
#include "ctl/commands.h"
#include "datapath/paths.h"
#include "util/clock.h"
#include "util/file.h"
#include "util/text.h"

namespace egressclass::ctl {
namespace {

int refuse(const std::string& what, const std::string& why) {
  std::fprintf(stderr, "egressctl: %s: %s\n", what.c_str(), why.c_str());
  return kBadConfig;
}

/// Where the records are: as the configuration in force says, else where they are by default.
std::string audit_folder() {
  std::vector<ConfigProblem> problems;
  for (const char* path : {paths::kAppliedConfig, kConfigPath})
    if (auto text = read_file(path, kMaxConfigBytes); text && *text)
      if (const auto config = parse_config(**text, &problems); config && config->audit) return config->audit->folder;
  return AuditConfig{}.folder;
}

std::string text_of(const Json& record, const char* key) {
  const Json* member = find_member(record, key);
  if (member == nullptr) return "?";
  return printable(member->is_string() ? member->get<std::string>() : dump_json(*member), 253);
}

std::string with_port(const std::string& address, const std::string& port) {
  return (address.find(':') == std::string::npos ? address : "[" + address + "]") + ":" + port;
}

void print(const audit::Holder& holder) {
  const Json& r = holder.record;
  const Json* pod = find_member(r, "pod");
  std::printf("pod          %s\n",
              pod == nullptr ? "not known" : (text_of(*pod, "namespace") + "/" + text_of(*pod, "name")).c_str());
  if (pod != nullptr)
    std::printf("             uid %s, container %s\n", text_of(*pod, "uid").c_str(),
                text_of(*pod, "containerId").c_str());
  std::printf("class        %s\n", text_of(r, "class").c_str());
  std::printf("flow         %s, %s to %s, by gateway %s\n", text_of(r, "protocol").c_str(),
              with_port(text_of(r, "source"), text_of(r, "sourcePort")).c_str(),
              with_port(text_of(r, "destination"), text_of(r, "destinationPort")).c_str(),
              text_of(r, "gateway").c_str());
  std::printf("from         %s\n", format_time(holder.start_ns).c_str());
  if (holder.end_ns == audit::kStillOpen)
    std::printf("until        now: it is open\n");
  else if (!holder.end_known)
    std::printf("until        %s at the latest: its end was not seen\n", format_time(holder.end_ns).c_str());
  else
    std::printf("until        %s, %s\n", format_time(holder.end_ns).c_str(), text_of(r, "reason").c_str());
  if (find_member(r, "packetsOut") != nullptr)
    std::printf("traffic      out %s packets, %s bytes; in %s packets, %s bytes\n", text_of(r, "packetsOut").c_str(),
                text_of(r, "bytesOut").c_str(), text_of(r, "packetsIn").c_str(), text_of(r, "bytesIn").c_str());
}

Json to_json(const std::vector<audit::Holder>& holders) {
  Json list = Json::array();
  for (const audit::Holder& holder : holders)
    list.push_back({{"from", format_time(holder.start_ns)},
                    {"until", holder.end_ns == audit::kStillOpen ? Json() : Json(format_time(holder.end_ns))},
                    {"endKnown", holder.end_known},
                    {"record", holder.record}});
  return list;
}

}  // namespace

int who(const std::string& endpoint_text, const std::string& at, const std::string& folder, bool json) {
  std::string why;
  const auto target = Target::parse(endpoint_text, &why);
  if (!target) return refuse(endpoint_text, why);
  if (!target->port) return refuse(endpoint_text, "must be ADDR:PORT, with /udp or another protocol if it is not TCP");
  const std::int64_t now = now_ns();
  const auto time = at.empty() ? now : parse_time(at, now);
  if (!time)
    return refuse(at,
                  "must be a time as 2026-11-27T12:00:01Z, \"2026-11-27 12:00:01+01:00\", or 12:00:01 of today (UTC)");

  const std::string where = folder.empty() ? audit_folder() : folder;
  const audit::Endpoint endpoint{target->address, *target->port, target->protocol.value_or(IPPROTO_TCP)};
  auto holders = audit::find_holders(where, endpoint, *time);
  if (!holders) return fail(holders.error());
  if (json) {
    const Json answer = {{"endpoint", target->str()},
                         {"at", format_time(*time)},
                         {"holders", to_json(holders->then)},
                         {"near", to_json(holders->near)}};
    std::printf("%s\n", dump_json(answer).c_str());
    return holders->then.empty() ? kFailure : kSuccess;
  }
  for (std::size_t i = 0; i < holders->then.size(); ++i) {
    if (i != 0) std::printf("\n");
    print(holders->then[i]);
  }
  if (!holders->then.empty()) return kSuccess;
  std::printf("nobody had %s at %s, by the records in %s\n", target->str().c_str(), format_time(*time).c_str(),
              where.c_str());
  for (const audit::Holder& holder : holders->near) {
    std::printf("\n%s:\n", holder.start_ns > *time ? "the next who had it" : "the last who had it");
    print(holder);
  }
  return kFailure;
}

}  // namespace egressclass::ctl
