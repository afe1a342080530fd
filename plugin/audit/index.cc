// SPDX-License-Identifier: Apache-2.0
#include "audit/index.h"

#include <netinet/in.h>

#include <charconv>
#include <cstring>

#include "util/clock.h"

namespace egressclass::audit {
namespace {

/// The text behind `key` (which ends with the colon, and the quote of a text) up to the quote, comma or brace behind.
std::optional<std::string_view> value_of(std::string_view line, std::string_view key) {
  const auto at = line.find(key);
  if (at == std::string_view::npos) return {};
  const auto begin = at + key.size();
  const auto end = line.find_first_of("\",}", begin);
  if (end == std::string_view::npos) return {};
  return line.substr(begin, end - begin);
}

template <class Number>
std::optional<Number> number_of(std::optional<std::string_view> text, int base = 10) {
  Number value{};
  if (!text) return {};
  const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), value, base);
  if (error != std::errc() || end != text->data() + text->size()) return {};
  return value;
}

std::optional<std::uint32_t> seconds_of(std::optional<std::string_view> text) {
  const auto ns = text ? parse_time(*text, 0) : std::nullopt;
  if (!ns) return {};
  return static_cast<std::uint32_t>(*ns / kNsPerSecond);
}

std::optional<std::uint8_t> protocol_of(std::optional<std::string_view> name) {
  if (name == "tcp") return IPPROTO_TCP;
  if (name == "udp") return IPPROTO_UDP;
  if (name == "sctp") return IPPROTO_SCTP;
  if (name == "icmp") return IPPROTO_ICMP;
  if (name == "icmpv6") return IPPROTO_ICMPV6;
  return number_of<std::uint8_t>(name);
}

}  // namespace

std::uint64_t endpoint_hash(const Ip& ip, std::uint16_t port, std::uint8_t protocol) {
  std::uint64_t words[3] = {0, 0, static_cast<std::uint64_t>(port) << 8U | protocol};
  std::memcpy(words, ip.bytes.data(), ip.bytes.size());
  std::uint64_t hash = 0x9e3779b97f4a7c15ULL;
  for (const std::uint64_t word : words) {  // splitmix64 of each
    hash = (hash ^ word) + 0x9e3779b97f4a7c15ULL;
    hash = (hash ^ hash >> 30U) * 0xbf58476d1ce4e5b9ULL;
    hash = (hash ^ hash >> 27U) * 0x94d049bb133111ebULL;
    hash ^= hash >> 31U;
  }
  return hash == kAgentEndpoint ? 1 : hash;
}

std::optional<Entry> entry_of(std::string_view line) {
  const auto event = value_of(line, R"("event":")");
  const auto time = seconds_of(value_of(line, R"("time":")"));
  if (!event || !time) return {};
  if (*event == "agent" && value_of(line, R"("state":")") == "started")
    return Entry{kAgentEndpoint, 0, *time, *time, 0, 0};
  if (*event != "start" && *event != "resumed" && *event != "end") return {};

  const auto flow = number_of<std::uint64_t>(value_of(line, R"("flow":")"), 16);
  const auto protocol = protocol_of(value_of(line, R"("protocol":")"));
  const auto address = value_of(line, R"("egressIP":")");
  const auto ip = address ? Ip::parse(*address) : std::nullopt;
  const auto port = number_of<std::uint16_t>(value_of(line, R"("egressPort":)"));
  if (!flow || !protocol || !ip || !port) return {};
  const auto start = seconds_of(value_of(line, R"("start":")"));
  return Entry{endpoint_hash(*ip, *port, *protocol), *flow, start.value_or(*time), *time, 0, *event == "end" ? 0U : 1U};
}

}  // namespace egressclass::audit
