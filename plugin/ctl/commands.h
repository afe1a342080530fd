// SPDX-License-Identifier: Apache-2.0
// egressctl's commands. Each returns the process's exit code: 0 success, 1 failure, 2 bad configuration,
// 3 the node is not ready for it yet.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "util/result.h"

namespace egressclass::ctl {

inline constexpr int kSuccess = 0;
inline constexpr int kFailure = 1;
inline constexpr int kBadConfig = 2;
inline constexpr int kNotYet = 3;

/// Validates `file` and makes the node equal to it. kNotYet: it would be good if this node had an address or an
/// interface that it does not have yet.
int apply(const std::string& file);
/// Only validates, as far as who asks may look: without root, and on a machine that is no node, the file itself.
int check(const std::string& file);
/// Removes everything of ours, but for the classifiers of running pods with a class, which drop from then on.
/// `unless_pods`: when there are such pods, changes nothing and returns kFailure.
int down(bool unless_pods);
/// Makes the gateway's network namespace, empty, unless it is there: ahead of an apply that may not mount.
int netns();
/// Health of the datapath, gateways, classes, counters. kFailure when something is wrong, kNotYet when an apply or a
/// down is under way and nobody can say.
int status(bool json);
/// The attachments of this node.
int pods(bool json);

/// Whose packet, and to where.
struct Question {
  std::string pod;    ///< "namespace/name"
  std::string netns;  ///< path
  std::string ip;     ///< of the pod; beside `pod` or `netns`: which of its addresses
  std::string to;     ///< core/target.h
  std::optional<std::uint16_t> from_port;
};
/// What becomes of a packet, step by step. kBadConfig: the question cannot be understood.
int explain(const Question& question, bool json);

/// Which pod had an egress IP and port ("ADDR:PORT[/PROTO]") at a time; empty: now. `folder`: of the audit's files;
/// empty: by the configuration. kFailure when nobody had it, kBadConfig when the question cannot be understood.
int who(const std::string& endpoint, const std::string& at, const std::string& folder, bool json);

/// Prints the error to stderr; returns kFailure.
int fail(const Error& error);

}  // namespace egressclass::ctl
