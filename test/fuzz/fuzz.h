// SPDX-License-Identifier: Apache-2.0
// What the fuzz targets share. Each has the hostile input of one door; corpus/<target> holds its seeds.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>

#include "cni/protocol.h"
#include "util/result.h"

namespace egressclass::fuzz {

/// An invariant: without it the input is a finding.
inline void require(bool holds, const char* what, std::string_view shown = {}) {
  if (holds) return;
  std::fprintf(stderr, "invariant broken: %s: %.*s\n", what, static_cast<int>(shown.size()), shown.data());
  std::abort();
}

/// A text that is made of hostile input ends up in pod events and in terminals.
inline void require_message(const std::string& text, std::size_t max = 2000) {
  require(text.size() <= max, "messages are bounded", text);
  require(std::ranges::all_of(text, [](char c) { return c >= ' ' && c <= '~'; }), "messages are printable", text);
}

/// The error as a runtime gets it. The check uses the library's own parser, not ours.
inline void require_cni_error(const Error& error, const std::string& cni_version) {
  require_message(error.msg);
  require_message(error.details);
  const auto object = nlohmann::json::parse(cni::format_error(error, cni_version), nullptr, false);
  require(object.is_object() && object.size() == 4, "an error is a JSON object");
  require(object["code"].is_number_integer() && object["code"] > 0 && object["code"] < 1000, "an error has a code");
  require(!object.value("msg", std::string()).empty(), "an error has a message");
  require(object["details"].is_string(), "an error has details");
  require(object["cniVersion"] == (cni_version.empty() ? "1.1.0" : cni_version), "an error has a version");
}

/// What is ahead of the next `separator`, which is taken off too; all of `rest` when there is none.
inline std::string take(std::string_view* rest, char separator) {
  const std::string_view part = rest->substr(0, rest->find(separator));
  rest->remove_prefix(std::min(rest->size(), part.size() + 1));
  return std::string(part);
}

}  // namespace egressclass::fuzz

#define FUZZ_TARGET(input)                                                              \
  static void run_one(std::string_view input);                                          \
  extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {   \
    run_one({reinterpret_cast<const char*>(data), size}); /* NOLINT: bytes are bytes */ \
    return 0;                                                                           \
  }                                                                                     \
  static void run_one(std::string_view input)
