// SPDX-License-Identifier: Apache-2.0
// The operator's command.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <string>

#include "core/config.h"
#include "ctl/cni.h"
#include "ctl/commands.h"
#include "util/version.h"

namespace egressclass::ctl {

int fail(const Error& error) {
  std::fprintf(stderr, "egressctl: %s: %s\n", error.msg.c_str(), error.details.c_str());
  return kFailure;
}

namespace {

int run(int argc, char** argv) {
  CLI::App app{"Egress classes of this node: which pods leave through which gateway, with which IP"};
  app.require_subcommand(1);
  app.set_version_flag("--version", std::string("egressctl ") + kVersion);
  int result = kSuccess;

  std::string file = kConfigPath;
  bool check_only = false;
  auto* apply_command = app.add_subcommand("apply", "validate the configuration, and make this node equal to it");
  apply_command->add_option("-c,--config", file, "configuration file")->capture_default_str();
  apply_command->add_flag("--check", check_only,
                          "validate only, change nothing; for that nobody has to be root, or on a node");
  apply_command->callback([&] { result = check_only ? ctl::check(file) : ctl::apply(file); });

  auto* netns_command = app.add_subcommand(
      "netns",
      "make the gateway's network namespace, empty; for units, whose apply may not: it does so itself elsewhere");
  netns_command->callback([&] { result = ctl::netns(); });

  bool json = false;
  auto* status_command = app.add_subcommand("status", "health of the datapath, gateways, classes, counters");
  status_command->add_flag("--json", json, "for machines");
  status_command->callback([&] { result = ctl::status(json); });

  auto* pods_command = app.add_subcommand("pods", "pods of this node that have a class");
  pods_command->add_flag("--json", json, "for machines");
  pods_command->callback([&] { result = ctl::pods(json); });

  Question question;
  auto* explain_command = app.add_subcommand("explain", "what becomes of a pod's packet, step by step");
  auto* whose = explain_command->add_option_group("whose");
  whose->add_option("--pod", question.pod, "NAMESPACE/NAME");
  whose->add_option("--netns", question.netns, "path of the pod's network namespace");
  whose->add_option("--ip", question.ip, "address of the pod; beside --pod or --netns: the source of the packet");
  whose->require_option(1, 2);
  explain_command->add_option("--to", question.to, "ADDR[:PORT][/PROTO], [IPV6]:PORT")->required();
  explain_command->add_option("--from-port", question.from_port,
                              "source port; asked for only where each flow chooses its gateway");
  explain_command->add_flag("--json", json, "for machines");
  explain_command->callback([&] { result = ctl::explain(question, json); });

  std::string endpoint;
  std::string at;
  std::string folder;
  auto* who_command =
      app.add_subcommand("who", "which pod had an egress IP and port at a time, by this gateway's records");
  who_command->add_option("endpoint", endpoint, "ADDR:PORT[/PROTO], [IPV6]:PORT")->required();
  who_command->add_option("--at", at,
                          "2026-11-27T12:00:01Z, or 12:00:01 of today; UTC unless it says a zone; default: now");
  who_command->add_option("--folder", folder, "of the audit's files, if it is not that of the configuration");
  who_command->add_flag("--json", json, "for machines");
  who_command->callback([&] { result = ctl::who(endpoint, at, folder, json); });

  bool unless_pods = false;
  auto* down_command = app.add_subcommand(
      "down", "remove everything of ours from this node; pods with a class that still run stay closed");
  down_command->add_flag("--unless-pods", unless_pods, "change nothing, and fail, when there are such pods");
  down_command->callback([&] { result = ctl::down(unless_pods); });

  ctl::add_cni_commands(app, &result);

  CLI11_PARSE(app, argc, argv);
  return result;
}

}  // namespace
}  // namespace egressclass::ctl

int main(int argc, char** argv) {
  try {
    return egressclass::ctl::run(argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "egressctl: %s\n", e.what());
    return egressclass::ctl::kFailure;
  }
}
