// SPDX-License-Identifier: Apache-2.0
// The CNI protocol (SPEC 1.1.0): from environment and stdin to a checked request, and back to stdout.
// Knows nothing of egress classes.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "util/json.h"
#include "util/result.h"

namespace egressclass::cni {

inline const std::vector<std::string> kSupportedVersions = {"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"};  // ascending

/// An attachment_key() and what a file name adds to it must stay below NAME_MAX.
inline constexpr std::size_t kMaxAttachmentKey = 200;

enum class Verb { kAdd, kDel, kCheck, kGc, kStatus, kVersion };

/// A request whose environment and configuration have been checked for its verb.
struct Request {
  Verb verb = Verb::kVersion;
  std::string cni_version;
  std::string network;  ///< `name` of the configuration
  std::string container_id;
  std::string netns;            ///< path; may be empty on DEL
  bool netns_override = false;  ///< the runtime's own namespace is meant
  std::string ifname;
  std::map<std::string, std::string> args;  ///< CNI_ARGS
  Json config;                              ///< stdin as parsed
  std::string prev_result_text;             ///< prevResult as it was written; may be empty

  /// The attachment as a file name: "<network>,<container id>,<ifname>". Unambiguous, since the first two
  /// hold no comma. ADD and CHECK are refused when it is longer than kMaxAttachmentKey.
  std::string attachment_key() const;
  /// Address texts ("10.0.0.2/24") that prevResult gives to this request's interface.
  std::vector<std::string> result_addresses() const;
  /// The pod's annotations from runtimeConfig; no value when the runtime sent none.
  std::optional<std::map<std::string, std::string>> annotations() const;
};

using Environment = std::function<const char*(const char*)>;

/// Checks environment and stdin in the order that the specification's reference does: all missing variables
/// in one message. `read_stdin` is called at most once, and only after the environment was found good.
/// `cni_version` (may be null) is set as soon as a supported version is known, for format_error().
/// VERSION succeeds whatever stdin holds; its cni_version is the version asked for, if any.
Result<Request> parse_request(const Environment& env, const std::function<Result<std::string>()>& read_stdin,
                              std::string* cni_version = nullptr);

/// prevResult for stdout: byte for byte, unless its version is another than the configuration's. Then it is converted
/// (between 0.x and 1.x) or gets its cniVersion, and numbers are written anew.
Result<std::string> pass_through(const Request& request);

/// The error object for stdout. Without a version it carries the newest.
std::string format_error(const Error& error, const std::string& cni_version);
/// Answer to VERSION: echoes the version asked for when it is one of ours.
std::string format_version(const std::string& asked);

}  // namespace egressclass::cni
