// SPDX-License-Identifier: Apache-2.0
#include "core/target.h"

#include <netinet/in.h>

#include "core/ports.h"

namespace egressclass {
namespace {

/// "[2001:db8::1]:443" and "192.0.2.1:443" have a port; "2001:db8::1" has none. What is in brackets is IPv6.
struct Parts {
  std::string_view address;
  std::string_view port;
  bool has_port = false;
};

Parts split(std::string_view text) {
  if (text.starts_with('['))
    if (const std::size_t end = text.find(']'); end != std::string_view::npos) {
      const std::string_view rest = text.substr(end + 1);
      if (rest.empty()) return {text.substr(1, end - 1), {}, false};
      if (rest[0] == ':') return {text.substr(1, end - 1), rest.substr(1), true};
    }
  const std::size_t colon = text.find(':');
  if (colon == std::string_view::npos || colon != text.rfind(':')) return {text, {}, false};
  return {text.substr(0, colon), text.substr(colon + 1), true};
}

}  // namespace

std::optional<Target> Target::parse(std::string_view text, std::string* why) {
  const std::size_t slash = text.find('/');
  const std::string protocol(slash == std::string_view::npos ? "" : text.substr(slash + 1));
  const Parts parts = split(text.substr(0, slash));
  const auto address = Ip::parse(parts.address);
  if (!address) {
    *why = "must be ADDR, ADDR:PORT or ADDR[:PORT]/PROTO, with an IPv6 address in brackets when a port follows";
    return std::nullopt;
  }
  Target target{*address, {}, {}};
  if (slash == std::string_view::npos && !parts.has_port) return target;

  if (protocol.find('/') != std::string::npos) {
    *why = "must have the port behind the address";
    return std::nullopt;
  }
  std::string rule_text = protocol.empty() && slash == std::string_view::npos ? "tcp" : protocol;
  if (parts.has_port) rule_text += "/" + std::string(parts.port);
  const auto rule = PortRule::parse(rule_text, why);
  if (!rule) return std::nullopt;
  if (parts.has_port && rule->first != rule->last) {
    *why = "must name one port, not a range";
    return std::nullopt;
  }
  target.protocol = rule->protocol;
  if (rule->protocol == IPPROTO_ICMP && !address->is_v4()) target.protocol = IPPROTO_ICMPV6;
  if (parts.has_port) target.port = rule->first;
  return target;
}

bool Target::has_ports() const {
  return protocol && (*protocol == IPPROTO_TCP || *protocol == IPPROTO_UDP || *protocol == IPPROTO_SCTP);
}

std::string Target::str() const {
  std::string text = port && !address.is_v4() ? "[" + address.str() + "]" : address.str();
  if (port) text += ":" + std::to_string(*port);
  if (!protocol) return text;
  PortRule rule{.protocol = *protocol};
  if (rule.protocol == IPPROTO_ICMPV6) rule.protocol = IPPROTO_ICMP;
  return text + "/" + rule.str();
}

}  // namespace egressclass
