// SPDX-License-Identifier: Apache-2.0
#include "audit/record.h"

#include <netinet/in.h>

#include <array>
#include <charconv>

#include "util/clock.h"

namespace egressclass::audit {
namespace {

/// Keys and values of one object. Texts are JSON texts already, or made of characters that need no escape.
class Line {
 public:
  Line() { text_.reserve(768); }

  Line& raw(const char* key, std::string_view json) {
    text_.append(text_.empty() ? "{\"" : ",\"").append(key).append("\":").append(json);
    return *this;
  }
  Line& text(const char* key, std::string_view value) {
    text_.append(text_.empty() ? "{\"" : ",\"").append(key).append("\":\"").append(value).push_back('"');
    return *this;
  }
  Line& number(const char* key, std::uint64_t value) {
    std::array<char, 24> digits{};
    const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), value).ptr;
    return raw(key, {digits.data(), end});
  }
  std::string end() && { return std::move(text_ += "}\n"); }

 private:
  std::string text_;
};

std::string hex16(std::uint64_t value) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string text(16, '0');
  for (std::size_t i = text.size(); i-- > 0; value >>= 4U) text[i] = kDigits[value & 15U];
  return text;
}

const char* event_name(FlowEvent event) {
  switch (event) {
    case FlowEvent::kStart:
      return "start";
    case FlowEvent::kResumed:
      return "resumed";
    case FlowEvent::kEnd:
      break;
  }
  return "end";
}

std::string seconds_text(std::int64_t ns) {
  std::array<char, 32> digits{};
  const auto end =
      std::to_chars(digits.data(), digits.data() + digits.size(),
                    static_cast<double>(ns) / static_cast<double>(kNsPerSecond), std::chars_format::fixed, 6)
          .ptr;
  return {digits.data(), end};
}

}  // namespace

Identity::Identity(Pod pod, const std::string& container_id)
    : pod_(std::move(pod)),
      json_(dump_json(
          {{"namespace", pod_.name_space}, {"name", pod_.name}, {"uid", pod_.uid}, {"containerId", container_id}})) {}

std::string protocol_name(std::uint8_t protocol) {
  switch (protocol) {
    case IPPROTO_TCP:
      return "tcp";
    case IPPROTO_UDP:
      return "udp";
    case IPPROTO_SCTP:
      return "sctp";
    case IPPROTO_ICMP:
      return "icmp";
    case IPPROTO_ICMPV6:
      return "icmpv6";
    default:
      return std::to_string(protocol);
  }
}

RecordWriter::RecordWriter(const std::string& node) : node_(dump_json(node)) {}

std::string RecordWriter::flow(const FlowRecord& record) const {
  const Tuple& t = record.tuple;
  Line line;
  line.text("time", format_time(record.time_ns)).text("event", event_name(record.event)).raw("node", node_);
  line.text("role", "gateway").text("flow", hex16(record.id));
  if (record.class_name.empty())
    line.raw("class", "null");
  else
    line.text("class", record.class_name);
  line.raw("pod", record.pod == nullptr ? std::string_view("null") : record.pod->json());
  line.text("protocol", protocol_name(t.protocol));
  line.text("source", t.source.str()).number("sourcePort", t.source_port);
  line.text("destination", t.destination.str()).number("destinationPort", t.destination_port);
  line.text("egressIP", t.egress.str()).number("egressPort", t.egress_port);
  line.text("gateway", record.gateway);
  if (record.start_ns != 0) line.text("start", format_time(record.start_ns));
  if (record.event != FlowEvent::kEnd) return std::move(line).end();
  if (record.out && record.in) {
    line.number("packetsOut", record.out->packets).number("bytesOut", record.out->bytes);
    line.number("packetsIn", record.in->packets).number("bytesIn", record.in->bytes);
  }
  if (record.start_ns != 0) line.raw("seconds", seconds_text(record.time_ns - record.start_ns));
  line.text("reason", record.reason);
  return std::move(line).end();
}

std::string RecordWriter::agent(const char* state, std::int64_t time_ns) const {
  Line line;
  line.text("time", format_time(time_ns)).text("event", "agent").raw("node", node_).text("state", state);
  return std::move(line).end();
}

std::string RecordWriter::lost(std::uint64_t count, const char* what, const std::string& reason,
                               std::int64_t time_ns) const {
  Line line;
  line.text("time", format_time(time_ns)).text("event", "lost").raw("node", node_).text("what", what);
  line.number("count", count).raw("reason", dump_json(reason));
  return std::move(line).end();
}

}  // namespace egressclass::audit
