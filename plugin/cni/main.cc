// SPDX-License-Identifier: Apache-2.0
// The executable that container runtimes call: environment and stdin in, one JSON document out.
#include <bpf/libbpf.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>

#include "cni/codes.h"
#include "cni/protocol.h"
#include "cni/verbs.h"
#include "util/file.h"

namespace {

using namespace egressclass;
using cni::Request;
using cni::Verb;

constexpr std::size_t kMaxStdinBytes = 4U << 20U;
constexpr unsigned kDeadlineSeconds = 30;

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

/// stdout gets one document, whole: runtimes parse whatever is there.
int finish(const std::string& document, int exit_code) {
  for (std::size_t done = 0; done < document.size();) {
    const ssize_t put = ::write(STDOUT_FILENO, document.data() + done, document.size() - done);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return 1;
    done += static_cast<std::size_t>(put);
  }
  return exit_code;
}

int run() {
  const char* command = std::getenv("CNI_COMMAND");
  if (command == nullptr || *command == '\0') {
    std::string versions;
    for (const std::string& version : cni::kSupportedVersions) versions += " " + version;
    std::fprintf(stderr, "egressclass: chained CNI plugin, gives pods their egress class\nCNI versions:%s\n",
                 versions.c_str());
    return 0;
  }
  std::string cni_version;
  auto request = cni::parse_request([](const char* name) { return std::getenv(name); },
                                    [] { return read_all(STDIN_FILENO, "stdin", kMaxStdinBytes); }, &cni_version);
  if (!request) return finish(cni::format_error(request.error(), cni_version), 1);
  auto output = dispatch(*request);
  if (!output) return finish(cni::format_error(output.error(), request->cni_version), 1);
  return finish(*output, 0);
}

}  // namespace

int main() {
  std::signal(SIGPIPE, SIG_IGN);
  ::alarm(kDeadlineSeconds);  // a system call that never returns must not hold up the pod for ever
  libbpf_set_print(nullptr);
  try {
    return run();
  } catch (const std::exception& e) {
    return finish(cni::format_error(Error{codes::kInternal, "unexpected exception", e.what()}, ""), 1);
  }
}
