// SPDX-License-Identifier: Apache-2.0
// The executable that container runtimes call: environment and stdin in, one JSON document out.
#include <bpf/libbpf.h>
#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <string_view>

#include "cni/codes.h"
#include "cni/log.h"
#include "cni/protocol.h"
#include "cni/verbs.h"
#include "util/file.h"
#include "util/version.h"

namespace {

using namespace egressclass;
using cni::Request;
using cni::Verb;

constexpr std::size_t kMaxStdinBytes = 4U << 20U;
constexpr unsigned kDeadlineSeconds = 25;  // runtimes wait for a minute at least

Result<std::string> dispatch(const Request& request) {
  switch (request.verb) {
    case Verb::kAdd:
      return cni::add(request);
    case Verb::kDel:
      return cni::del(request);
    case Verb::kCheck:
      return cni::check(request);
    case Verb::kGc:
      return cni::gc(request);
    case Verb::kStatus:
      return cni::status(request);
    case Verb::kVersion:
      break;
  }
  return cni::format_version(request.cni_version);
}

/// stdout gets one document, whole: runtimes parse whatever is there. And after it nothing, whatever a destructor does.
[[noreturn]] void finish(const std::string& document, int exit_code) {
  for (std::size_t done = 0; done < document.size();) {
    const ssize_t put = ::write(STDOUT_FILENO, document.data() + done, document.size() - done);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) ::_exit(1);
    done += static_cast<std::size_t>(put);
  }
  ::_exit(exit_code);
}

/// Where nothing but write() is allowed, or left.
[[noreturn]] void last_words(std::string_view error) {
  const ssize_t written = ::write(STDOUT_FILENO, error.data(), error.size());
  ::_exit(written < 0 ? 2 : 1);
}

/// A system call that never returns must not hold up the pod for ever.
void out_of_time(int) {
  last_words(R"({"cniVersion":"1.0.0","code":11,"msg":"egressclass ran out of time","details":)"
             R"("a lock, netlink or bpffs did not answer for 25 s; the next ADD or DEL starts over"})");
}

/// Without memory the way to main()'s catch can be barred: the JSON library's destructors allocate.
void terminated() {
  last_words(R"({"cniVersion":"1.0.0","code":999,"msg":"egressclass was terminated by an unexpected exception",)"
             R"("details":"most likely out of memory; the next ADD or DEL starts over"})");
}

/// The number of a standard stream that the caller closed would go to the next file: our answer would land there. What
/// takes it here can be neither read nor written.
void take_closed_streams() {
  int place = 0;
  while (place >= 0 && place <= STDERR_FILENO) place = ::open("/", O_PATH | O_CLOEXEC);
  ::close(place);
}

/// A caller of VERSION need not send anything, nor close its end.
Result<std::string> read_request(const std::string& command) {
  pollfd input{.fd = STDIN_FILENO, .events = POLLIN, .revents = 0};
  constexpr int kVersionWaitMs = 50;
  if (command == "VERSION" && ::poll(&input, 1, kVersionWaitMs) == 0) return std::string();
  return read_all(STDIN_FILENO, "stdin", kMaxStdinBytes);
}

void run() {
  const char* command = std::getenv("CNI_COMMAND");
  if (command == nullptr || *command == '\0') {
    std::string versions;
    for (const std::string& version : cni::kSupportedVersions) versions += " " + version;
    std::fprintf(stderr, "egressclass %s: chained CNI plugin, gives pods their egress class\nCNI versions:%s\n",
                 kVersion, versions.c_str());
    return;
  }
  std::string cni_version;
  auto request = cni::parse_request([](const char* name) { return std::getenv(name); },
                                    [command] { return read_request(command); }, &cni_version);
  if (!request) finish(cni::format_error(request.error(), cni_version), 1);
  auto settings = cni::log_settings(request->config);
  if (!settings && request->verb != Verb::kDel)  // a DEL has to succeed, whatever became of the conflist
    finish(cni::format_error(settings.error(), request->cni_version), 1);

  const auto start = std::chrono::steady_clock::now();
  auto output = dispatch(*request);
  cni::log_call(settings ? *settings : cni::LogSettings{}, *request, output ? nullptr : &output.error(),
                std::chrono::steady_clock::now() - start);
  if (!output) finish(cni::format_error(output.error(), request->cni_version), 1);
  finish(*output, 0);
}

}  // namespace

int main() {
  take_closed_streams();
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGALRM, out_of_time);
  std::set_terminate(terminated);
  ::alarm(kDeadlineSeconds);
  libbpf_set_print(nullptr);
  try {
    run();
  } catch (const std::exception& e) {
    finish(cni::format_error(Error{codes::kInternal, "unexpected exception", e.what()}, ""), 1);
  }
}
