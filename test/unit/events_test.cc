// SPDX-License-Identifier: Apache-2.0
// The numbers of events are keys of a map that outlives an upgrade: this list is only ever added to.
#include <gtest/gtest.h>

#include <map>
#include <string>

#include "../bpf/egressclass.h"

namespace egressclass {
namespace {

const std::map<std::string, int> kNumbers = {
    {"steered_local", 1},    {"steered_tunnel", 2},
    {"steered_nexthop", 3},  {"returned", 4},
    {"bypassed", 5},         {"replied", 6},
    {"gateway_out", 7},      {"gateway_back", 8},
    {"fragmented", 9},       {"too_big", 10},
    {"probe_sent", 11},      {"probe_answered", 12},
    {"no_attachment", 100},  {"datapath_down", 101},
    {"not_ip", 102},         {"spoofed", 103},
    {"class_removed", 104},  {"otherwise", 105},
    {"too_long", 106},       {"fragment", 107},
    {"family", 108},         {"gateway_unreachable", 109},
    {"tunnel_failed", 110},  {"unknown_sender", 111},
    {"unknown_class", 112},  {"wrong_gateway", 113},
    {"not_gateway", 114},    {"bad_destination", 115},
    {"worker_table", 116},   {"unverified", 118},
    {"stray", 119},          {"rules_missing", 120},
    {"mapped_address", 121}, {"nat_exhausted", 122},
    {"gateway_gone", 123},   {"not_translated", 124},
    {"no_route", 125},
};

TEST(Events, KeepTheirNumbers) {
  std::map<std::string, int> found;
#define X(number, id, name) found[name] = number;
  EC_EVENTS(X)
#undef X
  EXPECT_EQ(found, kNumbers);
}

}  // namespace
}  // namespace egressclass
