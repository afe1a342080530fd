// SPDX-License-Identifier: Apache-2.0
#include "agent/agent.h"

#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#define SPDLOG_HEADER_ONLY
#define FMT_HEADER_ONLY
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include "agent/gateway_flows.h"
#include "agent/pods.h"
#include "agent/recorder.h"
#include "core/applied.h"
#include "core/config.h"
#include "datapath/gateway_netns.h"
#include "datapath/maps.h"
#include "datapath/paths.h"
#include "util/clock.h"
#include "util/file.h"
#include "util/version.h"

namespace egressclass::agent {
namespace {

constexpr int kTickMs = 1000;
constexpr int kTicksBetweenReconciles = 300;

std::string host_name() {
  std::array<char, 256> name{};
  ::gethostname(name.data(), name.size() - 1);
  return name.data();
}

std::string underlay_of(const ec_node& node) {
  for (const ec_ip& underlay : {node.underlay4, node.underlay6})
    if (const Ip ip = from_ec(underlay); ip != Ip{}) return ip.str();
  return "";
}

/// Changes with each apply: the file is replaced.
struct Stamp {
  std::uint64_t inode = 0;
  std::int64_t time_ns = 0;
  std::uint64_t netns = 0;  ///< inode of the gateway's namespace
  bool operator==(const Stamp&) const = default;
};

Stamp applied_stamp() {
  struct stat status {};
  if (::stat(paths::kAppliedConfig, &status) != 0) return {};
  struct stat netns {};
  ::stat(paths::kGatewayNetns, &netns);
  return {status.st_ino, static_cast<std::int64_t>(status.st_mtim.tv_sec) * kNsPerSecond + status.st_mtim.tv_nsec,
          netns.st_ino};
}

/// What is in force on the node, as far as it matters here.
struct InForce {
  AuditConfig audit;
  Applied applied;
  std::string address;  ///< of this node
  Fd netns;             ///< the gateway's
};

/// No value: nothing is, or nothing is to be recorded, or this node is no gateway.
Result<std::optional<InForce>> read_in_force() {
  auto text = read_file(paths::kAppliedConfig, kMaxConfigBytes);
  if (!text) return text.error();
  if (!*text) return std::optional<InForce>();
  std::vector<ConfigProblem> problems;
  const auto config = parse_config(**text, &problems);
  if (!config)
    return make_error("the applied configuration is broken", format_problems(paths::kAppliedConfig, problems));
  if (!config->audit) return std::optional<InForce>();
  auto applied = read_applied();
  if (!applied) return applied.error();
  const auto node = read_node();
  if (!*applied || !node) return make_error("the datapath is not there", "run `egressctl apply`");
  if (node->gateway_ifindex == 0) return std::optional<InForce>();
  auto netns = open_gateway_netns();
  if (!netns) return netns.error();
  if (!*netns) return make_error("the gateway's network namespace is gone", "run `egressctl apply`");
  return std::optional(InForce{*config->audit, std::move(**applied), underlay_of(*node), std::move(*netns)});
}

std::uint64_t inode_of(const Fd& fd) {
  struct stat status {};
  return ::fstat(fd.get(), &status) == 0 ? status.st_ino : 0;
}

/// The recording of one audit configuration.
class Session {
 public:
  static Result<std::unique_ptr<Session>> start(InForce in_force) {
    auto session = std::unique_ptr<Session>(new Session(in_force));
    session->recorder_.record_agent("started");
    session->pods_.refresh();
    session->flows_.configure(in_force.applied, in_force.address);
    if (auto started = session->flows_.start(std::move(in_force.netns)); !started) return started.error();
    return session;
  }

  ~Session() { recorder_.record_agent("stopped"); }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  /// False: it has to begin anew.
  bool adopt(const InForce& in_force) {
    if (in_force.audit != audit_ || inode_of(in_force.netns) != netns_) return false;
    flows_.configure(in_force.applied, in_force.address);
    return true;
  }

  GatewayFlows& flows() { return flows_; }
  Recorder::Numbers numbers() const { return recorder_.numbers(); }

 private:
  explicit Session(const InForce& in_force)
      : audit_(in_force.audit),
        netns_(inode_of(in_force.netns)),
        recorder_(audit_, host_name()),
        flows_(pods_, recorder_) {}

  AuditConfig audit_;
  std::uint64_t netns_;
  Pods pods_;
  Recorder recorder_;
  GatewayFlows flows_;
};

class Agent {
 public:
  explicit Agent(const sigset_t& signals) : signals_(::signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK)) {}

  int run() {
    while (!stop_) {
      tick();
      const std::int64_t next = now_ns() + kTickMs * (kNsPerSecond / 1000);
      for (std::int64_t left = next - now_ns(); left > 0 && !stop_; left = next - now_ns())
        wait(static_cast<int>(left / (kNsPerSecond / 1000)) + 1);
    }
    return 0;
  }

 private:
  void tick() {
    if (const Stamp stamp = applied_stamp(); stamp != stamp_ || failed_ || !begun_) {
      begun_ = true;
      follow(stamp);
    }
    if (!session_) return;
    if (++ticks_ % kTicksBetweenReconciles == 0) report(session_->flows().reconcile());
    const std::string trouble = session_->numbers().trouble;
    if (trouble != trouble_) spdlog::warn("audit: {}", trouble.empty() ? "all is well again" : trouble);
    trouble_ = trouble;
  }

  void follow(const Stamp& stamp) {
    const bool failed_before = std::exchange(failed_, false);
    stamp_ = stamp;
    auto in_force = read_in_force();
    if (in_force && *in_force && session_ && !failed_before && session_->adopt(**in_force)) return;
    session_.reset();
    Status done = Ok{};
    if (!in_force) {
      done = in_force.error();
    } else if (*in_force) {
      auto session = Session::start(std::move(**in_force));
      if (session)
        session_ = std::move(*session);
      else
        done = session.error();
    }
    failed_ = !done;
    if (!done && failed_before) return;  // said already
    if (!done)
      spdlog::error("{}: {}", done.error().msg, done.error().details);
    else
      spdlog::info(
          "{}", session_
                    ? "recording"
                    : "nothing to record: no configuration is in force, its audit is off, or this node is no gateway");
  }

  void wait(int timeout_ms) {
    std::array<pollfd, 2> fds = {{{.fd = signals_.get(), .events = POLLIN, .revents = 0},
                                  {.fd = session_ ? session_->flows().fd() : -1, .events = POLLIN, .revents = 0}}};
    if (::poll(fds.data(), fds.size(), timeout_ms) <= 0) return;
    if (fds[0].revents != 0) stop_ = true;
    if (fds[1].revents == 0) return;
    auto more = session_->flows().step();
    report(more ? Status(Ok{}) : Status(more.error()));
  }

  void report(const Status& status) {
    if (status) return;
    spdlog::error("{}: {}", status.error().msg, status.error().details);
    failed_ = true;
  }

  Fd signals_;
  std::unique_ptr<Session> session_;
  Stamp stamp_;
  std::string trouble_;
  bool begun_ = false;
  bool failed_ = false;  ///< to begin anew at the next tick
  bool stop_ = false;
  unsigned ticks_ = 0;
};

}  // namespace

int run() {
  spdlog::set_default_logger(
      std::make_shared<spdlog::logger>("egressd", std::make_shared<spdlog::sinks::stderr_sink_mt>()));
  spdlog::set_pattern("%l: %v");  // the journal knows the time
  sigset_t signals;
  ::sigemptyset(&signals);
  ::sigaddset(&signals, SIGTERM);
  ::sigaddset(&signals, SIGINT);
  ::pthread_sigmask(SIG_BLOCK, &signals, nullptr);  // before the first thread
  ::signal(SIGPIPE, SIG_IGN);
  spdlog::info("egressd {}", kVersion);
  return Agent(signals).run();
}

}  // namespace egressclass::agent
