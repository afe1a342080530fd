// SPDX-License-Identifier: Apache-2.0
// `egressctl cni`: the hands of scripts/bootstrap.sh in the folders of the container runtime.
#pragma once

#include <CLI/CLI.hpp>

namespace egressclass::ctl {

// Exit codes beside kSuccess and kFailure.
inline constexpr int kRefused = 2;    // done as asked, no pod would start
inline constexpr int kNoNetwork = 3;  // the primary CNI has not written its configuration yet
inline constexpr int kBroken = 4;     // it has, but the runtime cannot load it
inline constexpr int kStale = 5;      // status: it is there, but not all is as it should be
inline constexpr int kAbsent = 6;     // status: our entry is not there

void add_cni_commands(CLI::App& app, int* result);

}  // namespace egressclass::ctl
