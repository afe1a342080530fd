// SPDX-License-Identifier: Apache-2.0
#include "agent/gateway_flows.h"

#include <linux/netfilter/nf_conntrack_tcp.h>
#include <netinet/in.h>

#include <algorithm>
#include <span>

#include "../bpf/egressclass.h"
#include "datapath/in_netns.h"
#include "datapath/paths.h"
#include "util/clock.h"

namespace egressclass::agent {
namespace {

constexpr std::size_t kEventsInStep = 4096;

audit::Tuple tuple_of(const TrackedFlow& flow) {
  return {.source = flow.source,
          .destination = flow.destination,
          .egress = flow.egress,
          .source_port = flow.source_port,
          .destination_port = flow.destination_port,
          .egress_port = flow.egress_port,
          .protocol = flow.protocol};
}

/// Conntrack's own id is a hash of 32 bits: among 200 000 flows, some share one.
std::uint64_t key_of(const TrackedFlow& flow) {
  std::uint64_t hash = 0xcbf29ce484222325ULL ^ flow.id;  // FNV-1a
  const auto add = [&](std::uint64_t value) { hash = (hash ^ value) * 0x100000001b3ULL; };
  for (const Ip* ip : {&flow.source, &flow.destination})
    for (const std::uint8_t byte : ip->bytes) add(byte);
  add(static_cast<std::uint64_t>(flow.source_port) << 16U | flow.destination_port);
  add(flow.protocol);
  return hash ^ hash >> 29U;
}

/// Why conntrack forgot a flow, as far as its state tells.
const char* end_reason(const TrackedFlow& flow) {
  if (flow.protocol == IPPROTO_TCP) {
    switch (flow.tcp_state) {
      case TCP_CONNTRACK_FIN_WAIT:
      case TCP_CONNTRACK_CLOSE_WAIT:
      case TCP_CONNTRACK_LAST_ACK:
      case TCP_CONNTRACK_TIME_WAIT:
        return "closed";
      case TCP_CONNTRACK_CLOSE:
        return "reset";
      default:
        break;
    }
  }
  return flow.answered ? "idle" : "unanswered";
}

std::optional<audit::Traffic> traffic_of(const std::optional<TrackedCount>& count) {
  if (!count) return {};
  return audit::Traffic{count->packets, count->bytes};
}

}  // namespace

void GatewayFlows::configure(const Applied& applied, std::string gateway) {
  gateway_ = std::move(gateway);
  class_of_.clear();
  for (const auto& [name, id] : applied.ids) class_of_[id] = name;
  for (const auto& [slot, id] : applied.slots) class_of_[id] = slot.first;
}

Status GatewayFlows::start(Fd netns) {
  netns_ = std::move(netns);
  const auto there = InNetns::enter(netns_, paths::kGatewayNetns);
  if (!there) return there.error();
  auto events = ConntrackEvents::open(EC_MARK_ID);
  if (!events) return events.error();
  events_ = std::move(*events);
  lost_before_ = 0;
  return list_tracked(EC_MARK_ID, [&](const TrackedFlow& flow) { open_flow(flow, audit::FlowEvent::kResumed); });
}

Result<bool> GatewayFlows::step() {
  pods_.refresh();
  auto more = events_->read([&](bool ended, const TrackedFlow& flow) { on_event(ended, flow); }, kEventsInStep);
  if (more && !*more) count_lost();  // not in the midst of a storm: the queue has to be empty for a comparison
  return more;
}

void GatewayFlows::count_lost() {
  const auto all = static_cast<std::uint32_t>(events_->lost());
  const std::uint32_t fresh = all - lost_before_;
  if (fresh == 0) return;
  lost_before_ = all;
  lost_ += fresh;
  recorder_.record_unseen(fresh, "the kernel's queue of conntrack events was full");
  if (auto done = reconcile(); !done) recorder_.record_unseen(0, done.error().details);
}

void GatewayFlows::on_event(bool ended, const TrackedFlow& flow) {
  if (ended)
    end_flow(flow);
  else
    open_flow(flow, audit::FlowEvent::kStart);
}

audit::FlowRecord GatewayFlows::record_of(const Open& open, std::uint64_t key, audit::FlowEvent event) const {
  audit::FlowRecord record;
  record.event = event;
  record.time_ns = now_ns();
  record.id = key;
  if (const auto found = class_of_.find(open.slot); found != class_of_.end()) record.class_name = found->second;
  record.pod = open.pod.get();
  record.tuple = open.tuple;
  record.gateway = gateway_;
  record.start_ns = open.start_ns;
  return record;
}

void GatewayFlows::open_flow(const TrackedFlow& flow, audit::FlowEvent event) {
  const auto [entry, is_new] = flows_.try_emplace(key_of(flow));
  Open& open = entry->second;
  open.seen = round_;
  if (!is_new) return;
  open.pod = pods_.find(flow.source);
  open.tuple = tuple_of(flow);
  open.start_ns = flow.start_ns;
  open.slot = flow.mark & EC_MARK_ID;
  if (event == audit::FlowEvent::kStart) ++begun_;
  recorder_.record(record_of(open, entry->first, event));
}

void GatewayFlows::end_flow(const TrackedFlow& flow) {
  const auto found = flows_.find(key_of(flow));
  if (found == flows_.end()) {  // it began while nobody listened, or its beginning was lost
    open_flow(flow, audit::FlowEvent::kStart);
    return end_flow(flow);
  }
  audit::FlowRecord record = record_of(found->second, found->first, audit::FlowEvent::kEnd);
  if (flow.start_ns != 0) record.start_ns = flow.start_ns;
  if (flow.stop_ns != 0) record.time_ns = flow.stop_ns;
  record.out = traffic_of(flow.out);
  record.in = traffic_of(flow.in);
  record.reason = end_reason(flow);
  recorder_.record(record);
  flows_.erase(found);
}

Status GatewayFlows::reconcile() {
  ++round_;
  pods_.refresh();
  {
    const auto there = InNetns::enter(netns_, paths::kGatewayNetns);
    if (!there) return there.error();
    if (auto listed =
            list_tracked(EC_MARK_ID, [&](const TrackedFlow& flow) { open_flow(flow, audit::FlowEvent::kStart); });
        !listed)
      return listed;
  }
  // Flows that began during the listing are not missed, and those that ended have their event: it is read first.
  for (;;) {
    auto more = events_->read([&](bool ended, const TrackedFlow& flow) { on_event(ended, flow); }, kEventsInStep);
    if (!more) return more.error();
    if (!*more) break;
  }
  for (auto it = flows_.begin(); it != flows_.end();) {
    if (it->second.seen == round_) {
      ++it;
      continue;
    }
    audit::FlowRecord record = record_of(it->second, it->first, audit::FlowEvent::kEnd);
    record.reason = "unseen";
    recorder_.record(record);
    it = flows_.erase(it);
  }
  return Ok{};
}

}  // namespace egressclass::agent
