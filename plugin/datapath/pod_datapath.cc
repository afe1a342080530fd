// SPDX-License-Identifier: Apache-2.0
#include "datapath/pod_datapath.h"

#include <bpf/bpf.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <string>

#include "cni/codes.h"
#include "core/mark.h"
#include "datapath/bpf_link.h"
#include "datapath/bpf_object.h"
#include "datapath/cookie_map.h"
#include "datapath/device_program.h"
#include "datapath/expedite.h"
#include "datapath/link_pins.h"
#include "datapath/maps.h"
#include "datapath/netlink.h"
#include "util/all_errors.h"

namespace egressclass {
namespace {

ec_attachment attachment_entry(const Attachment& attachment) {
  ec_attachment entry{};
  entry.cookie = attachment.cookie();
  entry.class_id = attachment.class_id;
  std::memcpy(entry.pod_mac, attachment.pod_mac.data(), sizeof(entry.pod_mac));
  std::memcpy(entry.host_mac, attachment.host_mac.data(), sizeof(entry.host_mac));
  return entry;
}

ec_endpoint endpoint_entry(const Attachment& attachment) {
  ec_endpoint entry{};
  entry.cookie = attachment.cookie();
  entry.ifindex = static_cast<__u32>(attachment.host_ifindex);
  entry.class_id = attachment.class_id;
  std::memcpy(entry.pod_mac, attachment.pod_mac.data(), sizeof(entry.pod_mac));
  std::memcpy(entry.host_mac, attachment.host_mac.data(), sizeof(entry.host_mac));
  return entry;
}

template <class Entry>
bool same_bytes(const Entry& a, const Entry& b) {
  return std::memcmp(&a, &b, sizeof(Entry)) == 0;
}

Error check_error(const Attachment& attachment, const std::string& what) {
  return Error{codes::kCheckFailed, "the egress class of the pod is not in force",
               what + " (class \"" + attachment.class_name + "\", host veth " + attachment.host_veth + ", ifindex " +
                   std::to_string(attachment.host_ifindex) + "); restart the pod"};
}

Result<Fd> open_program(const char* name) {
  const std::string path = std::string(paths::kProgramPins) + "/" + name;
  Fd program(bpf_obj_get(path.c_str()));
  if (!program) return system_error("cannot open the BPF program", path, errno, "has `egressctl apply` run?");
  return program;
}
Result<Fd> open_classifier() { return open_program("classify"); }
Result<Fd> open_second_classifier() { return open_program("classify_again"); }

/// The maps by which the classifier decides.
constexpr std::array kClassifierMaps = {"node",  "attachments", "endpoints", "classes",
                                        "rules", "ports",       "gateways",  "flows"};

/// After a pin was lost and made anew, a program that was loaded before has another map than who writes to the pin.
Result<bool> uses_pinned_maps(const Fd& program) {
  auto used = maps_of_program(program.get());
  if (!used) return used.error();
  for (const char* name : kClassifierMaps) {
    auto pinned = pinned_map_id(std::string(paths::kMapPins) + "/" + name);
    if (!pinned) return pinned.error();
    if (!used->contains(*pinned)) return false;
  }
  return true;
}

Status attach_steps(const Attachment& attachment) {
  auto program = open_classifier();
  if (!program) return program.error();
  auto second = open_second_classifier();
  if (!second) return second.error();
  const auto id = program_id(program->get());
  if (!id) return id.error();
  auto endpoints = open_endpoints_map();
  if (!endpoints) return endpoints.error();
  auto attachments = open_attachments_map();
  if (!attachments) return attachments.error();

  // The entries come first: a classifier without its entry drops, and one with it is complete.
  const auto ifindex = static_cast<__u32>(attachment.host_ifindex);
  if (auto done = attachments->set(ifindex, attachment_entry(attachment)); !done) return done;
  for (const Ip& ip : attachment.addresses)
    if (auto done = endpoints->set(to_ec(ip), endpoint_entry(attachment)); !done) return done;
  {
    const Expedite expedite;
    if (auto done = attach_link(program->get(), attachment.host_ifindex, Hook::kIngress,
                                classifier_pin(attachment.host_ifindex));
        !done)
      return done;
    if (auto held = hold_program(second->get(), attachment.host_ifindex, *id); !held) return held;
  }
  return check_pod(attachment);
}

bool is_there(const char* path) { return ::access(path, F_OK) == 0 || (errno != ENOENT && errno != ENOTDIR); }

}  // namespace

bool pod_datapath_ready() {
  return open_classifier() && open_second_classifier() && open_endpoints_map() && open_attachments_map() &&
         open_classes_map() && is_there(paths::kLinkPins);
}

bool state_exists() { return is_there(paths::kMapPins) || is_there(paths::kAttachments); }

Status attach_pod(const Attachment& attachment) {
  auto done = attach_steps(attachment);
  if (done || done.error().code == codes::kCheckFailed) return done;
  Error error = done.error();
  error.code = codes::kAttachFailed;
  return error;
}

namespace {

/// A map whose pin is gone has no entries: never applied, rebooted since, or an apply or a down was killed half-way.
bool has_map(const char* name) { return is_there((std::string(paths::kMapPins) + "/" + name).c_str()); }

/// Classifier and entry of the host veth, if they are this attachment's.
Status detach_veth(const Attachment& attachment) {
  auto attachments = open_attachment_cookies();
  if (!attachments) return attachments.error();
  const auto ifindex = static_cast<__u32>(attachment.host_ifindex);
  auto entry = attachments->find(ifindex);
  if (!entry) return entry.error();
  if (*entry != attachment.cookie()) return Ok{};

  const std::string pin = classifier_pin(attachment.host_ifindex);
  auto link = read_link(pin);
  if (!link) return link.error();
  auto second = open_second_classifier();
  auto second_id = second ? program_id(second->get()) : Result<std::uint32_t>(second.error());
  const auto held = second_id ? holds_program(*second_id, attachment.host_ifindex) : Result<bool>(false);
  if (!held) return held.error();
  // Both are bound to the device itself, so this is our veth, and no later one with the same ifindex.
  if (*held || (*link && (*link)->ifindex == attachment.host_ifindex)) {
    auto netlink = Netlink::open();
    if (!netlink) return netlink.error();
    auto down = netlink->set_up(attachment.host_ifindex, false);
    auto still_there = netlink->link(attachment.host_ifindex);
    if (!down && still_there && *still_there) return down;
    if (second)  // without its pin it stays on, until the interface goes
      if (auto released = release_program(second->get(), attachment.host_ifindex); !released) return released;
  }
  if (auto removed = remove_link(pin); !removed) return removed;
  return attachments->erase(ifindex);
}

Status forget_endpoints(const Attachment& attachment) {
  auto endpoints = open_endpoint_cookies();
  if (!endpoints) return endpoints.error();
  for (const Ip& ip : attachment.addresses) {
    auto endpoint = endpoints->find(to_ec(ip));
    if (!endpoint) return endpoint.error();
    if (*endpoint != attachment.cookie()) continue;
    if (auto erased = endpoints->erase(to_ec(ip)); !erased) return erased;
  }
  return Ok{};
}

}  // namespace

Status detach_pod(const Attachment& attachment) {
  const Expedite expedite;
  AllErrors errors;
  if (has_map("attachments"))
    errors.add(detach_veth(attachment));
  else if (auto link = read_link(classifier_pin(attachment.host_ifindex)); link && *link && (*link)->ifindex != 0)
    errors.add(make_error("cannot tell whether a classifier is this attachment's",
                          classifier_pin(attachment.host_ifindex) +
                              " is live, but the map `attachments` is not pinned; run `egressctl apply`"));
  if (has_map("endpoints")) errors.add(forget_endpoints(attachment));
  return errors.status();
}

Result<std::optional<Attachment>> recover_attachment(const std::string& key) {
  Attachment found;
  found.key = key;
  if (has_map("attachments")) {
    auto map = open_attachment_cookies();
    if (!map) return map.error();
    auto ifindexes = map->keys_with(found.cookie());
    if (!ifindexes) return ifindexes.error();
    for (const __u32 ifindex : *ifindexes) found.host_ifindex = static_cast<int>(ifindex);
  }
  if (has_map("endpoints")) {
    auto map = open_endpoint_cookies();
    if (!map) return map.error();
    auto ips = map->keys_with(found.cookie());
    if (!ips) return ips.error();
    for (const ec_ip& ip : *ips) found.addresses.push_back(from_ec(ip));
  }
  if (found.host_ifindex == 0 && found.addresses.empty()) return std::optional<Attachment>();
  return std::optional<Attachment>(std::move(found));
}

namespace {

bool is_gone(const Attachment& attachment) {
  auto netlink = Netlink::open();
  if (!netlink) return false;
  auto link = netlink->link(attachment.host_ifindex);
  return link && !*link;
}

}  // namespace

struct PodChecker::Common {
  BpfMap<__u32, ec_attachment> attachments;
  BpfMap<ec_ip, ec_endpoint> endpoints;
  BpfMap<__u32, ec_class> classes;
  std::optional<ec_node> node;
  std::uint32_t classifier_id = 0;
  std::uint32_t second_classifier_id = 0;
  bool same_maps = false;
};

PodChecker::PodChecker(std::unique_ptr<Common> common) : common_(std::move(common)) {}
PodChecker::PodChecker(PodChecker&&) noexcept = default;
PodChecker::~PodChecker() = default;

Result<PodChecker> PodChecker::open() {
  auto attachments = open_attachments_map();
  if (!attachments) return attachments.error();
  auto endpoints = open_endpoints_map();
  if (!endpoints) return endpoints.error();
  auto classes = open_classes_map();
  if (!classes) return classes.error();
  auto classifier = open_classifier();
  if (!classifier) return classifier.error();
  auto id = program_id(classifier->get());
  if (!id) return id.error();
  auto same_maps = uses_pinned_maps(*classifier);
  if (!same_maps) return same_maps.error();
  auto second = open_second_classifier();
  if (!second) return second.error();
  auto second_id = program_id(second->get());
  if (!second_id) return second_id.error();
  return PodChecker(std::make_unique<Common>(Common{std::move(*attachments), std::move(*endpoints), std::move(*classes),
                                                    read_node(), *id, *second_id, *same_maps}));
}

Status check_pod(const Attachment& attachment) {
  auto checker = PodChecker::open();
  return checker ? checker->check(attachment) : Status(checker.error());
}

Status PodChecker::check(const Attachment& attachment) const {
  const auto& [attachments, endpoints, classes, node, classifier_id, second_classifier_id, same_maps] = *common_;
  auto link = read_link(classifier_pin(attachment.host_ifindex));
  if (!link) return link.error();
  if (!*link) return check_error(attachment, "the pin of the classifier's link is missing");
  if ((*link)->ifindex == 0 && is_gone(attachment))
    return Error{
        codes::kCheckFailed, "the egress class of the pod is not in force",
        "the pod's host veth " + attachment.host_veth + " is gone: the pod has ended, and its DEL is still to come"};
  if ((*link)->ifindex != attachment.host_ifindex) return check_error(attachment, "the classifier was detached");
  if ((*link)->program_id != classifier_id)
    return check_error(attachment, "another program sits in the classifier's link");
  if (!same_maps)
    return Error{codes::kCheckFailed, "the egress class of the pod is not in force",
                 "the classifier has other maps than those that are pinned; run `egressctl apply`"};
  auto held = holds_program(second_classifier_id, attachment.host_ifindex);
  if (!held) return held.error();
  if (!*held) return check_error(attachment, "the second classifier is not on the host veth");

  // An apply that was killed half-way may have given the id to another class.
  auto class_entry = classes.find(attachment.class_id);
  if (!class_entry) return class_entry.error();
  if (!*class_entry || (*class_entry)->vni != attachment.class_vni || !node ||
      (*class_entry)->mark != deposit_bits(attachment.class_id, node->mark_mask))
    return check_error(attachment, "the class or its mark is not configured any more, or not applied completely");

  auto entry = attachments.find(static_cast<__u32>(attachment.host_ifindex));
  if (!entry) return entry.error();
  if (!*entry || !same_bytes(**entry, attachment_entry(attachment)))
    return check_error(attachment, "the pod's entry in the map `attachments` is missing or not what ADD wrote");
  for (const Ip& ip : attachment.addresses) {
    auto endpoint = endpoints.find(to_ec(ip));
    if (!endpoint) return endpoint.error();
    if (!*endpoint || !same_bytes(**endpoint, endpoint_entry(attachment)))
      return check_error(attachment, "the entry of " + ip.str() + " in the map `endpoints` is missing or wrong");
  }
  return Ok{};
}

}  // namespace egressclass
