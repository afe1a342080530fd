// SPDX-License-Identifier: Apache-2.0
// One line per call of the plugin, for operators who look at the runtime's journal or at a file. Our own keys of the
// plugin's configuration: "logLevel" ("debug", "info", "warning", "error", "off"; default "warning", so that success
// is silent: runtimes forward stderr) and "logFile" (absolute; also written to, kept below 8 MiB and one old copy).
#pragma once

#include <chrono>
#include <string>

#include "cni/protocol.h"
#include "util/result.h"

namespace egressclass::cni {

struct LogSettings {
  std::string level = "warning";
  std::string file;
};

/// A value that is none of the above is an error (kUnsupportedField) with key and value.
Result<LogSettings> log_settings(const Json& config);

/// What happened, with what it was about, how long it took, and whether the runtime sends annotations (old ones do
/// not). A log that cannot be written is none of the caller's business: never fails.
void log_call(const LogSettings& settings, const Request& request, const Error* error,
              std::chrono::steady_clock::duration took) noexcept;

}  // namespace egressclass::cni
