// SPDX-License-Identifier: Apache-2.0
#include "cni/log.h"

#include <fcntl.h>

#define SPDLOG_HEADER_ONLY
#define FMT_HEADER_ONLY
#include <spdlog/logger.h>
#include <spdlog/sinks/rotating_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <exception>
#include <filesystem>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "cni/codes.h"
#include "cni/pod_class.h"
#include "util/fd.h"
#include "util/text.h"

namespace egressclass::cni {
namespace {

constexpr std::size_t kMaxFileBytes = 8UL << 20U;
constexpr std::array<std::pair<std::string_view, spdlog::level::level_enum>, 5> kLevels = {{
    {"debug", spdlog::level::debug},
    {"info", spdlog::level::info},
    {"warning", spdlog::level::warn},
    {"error", spdlog::level::err},
    {"off", spdlog::level::off},
}};

const char* verb_name(Verb verb) {
  switch (verb) {
    case Verb::kAdd:
      return "ADD";
    case Verb::kDel:
      return "DEL";
    case Verb::kCheck:
      return "CHECK";
    case Verb::kGc:
      return "GC";
    case Verb::kStatus:
      return "STATUS";
    case Verb::kVersion:
      break;
  }
  return "VERSION";
}

std::string one_line(std::string text) {
  std::ranges::replace(text, '\n', ' ');
  return text;
}

Error bad_value(const char* key, const Json& value, const char* allowed) {
  return Error{codes::kUnsupportedField, std::string("unsupported value of ") + key + ": " + printable(value.dump()),
               std::string("in the entry of type egressclass: allowed is ") + allowed};
}

/// The library would wait for the reader of a pipe, and try again for a while where nothing can be written.
bool is_writable_file(const std::string& path) {
  std::error_code ec;
  std::filesystem::create_directories(std::filesystem::path(path).parent_path(), ec);
  const Fd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_NONBLOCK | O_CLOEXEC, 0600));
  struct stat info {};
  return fd && ::fstat(fd.get(), &info) == 0 && S_ISREG(info.st_mode);
}

std::vector<spdlog::sink_ptr> open_sinks(const std::string& file) {
  std::vector<spdlog::sink_ptr> sinks = {std::make_shared<spdlog::sinks::stderr_sink_st>()};
  if (file.empty() || !is_writable_file(file)) return sinks;  // then stderr has to do
  try {
    sinks.push_back(std::make_shared<spdlog::sinks::rotating_file_sink_st>(file, kMaxFileBytes, 1));
  } catch (const std::exception&) {  // NOLINT(bugprone-empty-catch): the same
  }
  return sinks;
}

}  // namespace

Result<LogSettings> log_settings(const Json& config) {
  LogSettings settings;
  if (const Json* level = find_member(config, "logLevel")) {
    const auto known = [&](const auto& entry) { return *level == Json(entry.first); };
    if (std::ranges::none_of(kLevels, known))
      return bad_value("logLevel", *level, "\"debug\", \"info\", \"warning\", \"error\" or \"off\"");
    settings.level = level->get<std::string>();
  }
  if (const Json* file = find_member(config, "logFile")) {
    if (!file->is_string() || !file->get<std::string>().starts_with('/'))
      return bad_value("logFile", *file, "an absolute path");
    settings.file = file->get<std::string>();
  }
  return settings;
}

void log_call(const LogSettings& settings, const Request& request, const Error* error,
              std::chrono::steady_clock::duration took) noexcept {
  const auto level =
      std::ranges::find(kLevels, std::string_view(settings.level), &decltype(kLevels)::value_type::first);
  const auto severity = error != nullptr ? spdlog::level::err : spdlog::level::info;
  if (severity < level->second) return;  // before any file is opened
  const mode_t before = ::umask(0077);   // pods' names are nobody else's business
  try {
    const auto sinks = open_sinks(settings.file);
    spdlog::logger log("egressclass", sinks.begin(), sinks.end());
    log.set_level(level->second);
    log.set_error_handler([](const std::string&) {});
    log.set_pattern("%Y-%m-%dT%H:%M:%S.%e%z egressclass[%P] %l: %v");
    const Pod pod = pod_of(request);
    const double ms = std::chrono::duration<double, std::milli>(took).count();
    log.log(severity, "{} {} network={} container={} ifname={} pod={}/{} annotations={} ms={:.1f}{}",
            verb_name(request.verb), error != nullptr ? "failed" : "ok", request.network, request.container_id,
            request.ifname, printable(pod.name_space), printable(pod.name), request.annotations() ? "sent" : "none", ms,
            error != nullptr
                ? " code=" + std::to_string(error->code) + " " + one_line(error->msg + ": " + error->details)
                : "");
  } catch (...) {  // NOLINT(bugprone-empty-catch): a log line is not worth a pod
  }
  ::umask(before);
}

}  // namespace egressclass::cni
