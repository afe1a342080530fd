// SPDX-License-Identifier: Apache-2.0
#include "core/ports.h"

#include <netinet/in.h>

#include <algorithm>
#include <array>
#include <charconv>

namespace egressclass {
namespace {

constexpr unsigned kPortBits = 16;

struct Protocol {
  std::string_view name;
  std::uint8_t number;
  bool has_ports;
};

constexpr std::array<Protocol, 7> kProtocols = {{
    {"icmp", IPPROTO_ICMP, false},
    {"tcp", IPPROTO_TCP, true},
    {"udp", IPPROTO_UDP, true},
    {"sctp", IPPROTO_SCTP, true},
    {"gre", IPPROTO_GRE, false},
    {"esp", IPPROTO_ESP, false},
    {"ah", IPPROTO_AH, false},
}};

// Only digits and no leading zero, so that one port has one spelling.
std::optional<std::uint16_t> parse_port(std::string_view text) {
  std::uint16_t port = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), port);
  if (error != std::errc() || end != text.data() + text.size() || text[0] == '0') return {};
  return port;
}

}  // namespace

std::optional<PortRule> PortRule::parse(std::string_view text, std::string* why) {
  const auto refuse = [why](std::string reason) {
    *why = std::move(reason);
    return std::nullopt;
  };
  const std::size_t slash = text.find('/');
  const std::string_view name = text.substr(0, slash);
  const auto* protocol = std::ranges::find(kProtocols, name, &Protocol::name);
  if (protocol == kProtocols.end())
    return refuse("unknown protocol: there are icmp, tcp, udp, sctp, gre, esp and ah, and \"any\"");
  if (slash == std::string_view::npos) return PortRule{.protocol = protocol->number};
  if (!protocol->has_ports) return refuse(std::string(name) + " has no ports");

  const std::string_view ports = text.substr(slash + 1);
  const std::size_t dash = ports.find('-');
  const auto first = parse_port(ports.substr(0, dash));
  const auto last = dash == std::string_view::npos ? first : parse_port(ports.substr(dash + 1));
  if (!first || !last) return refuse("the port must be a number from 1 to 65535, or a range as 5000-5100");
  if (*first > *last) return refuse("the range ends before it begins");
  return PortRule{.protocol = protocol->number, .first = *first, .last = *last};
}

std::string PortRule::str() const {
  const auto* known = std::ranges::find(kProtocols, protocol, &Protocol::number);
  std::string text = known == kProtocols.end() ? std::to_string(protocol) : std::string(known->name);
  if (first == 0 && last == UINT16_MAX) return text;
  text += '/' + std::to_string(first);
  if (first != last) text += '-' + std::to_string(last);
  return text;
}

std::vector<std::pair<std::uint16_t, unsigned>> port_prefixes(std::uint16_t first, std::uint16_t last) {
  std::vector<std::pair<std::uint16_t, unsigned>> prefixes;
  for (std::uint32_t port = first; port <= last;) {
    unsigned free_bits = 0;  // the largest block that begins at `port` and ends not after `last`
    while ((port & (1U << free_bits)) == 0 && port + (2U << free_bits) - 1 <= last) ++free_bits;
    prefixes.emplace_back(static_cast<std::uint16_t>(port), kPortBits - free_bits);
    port += 1U << free_bits;
  }
  return prefixes;
}

}  // namespace egressclass
