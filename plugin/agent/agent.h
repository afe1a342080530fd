// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace egressclass::agent {

/// Until SIGTERM or SIGINT. Follows what is applied on the node: may begin before there is anything, and goes on after
/// it has changed. The exit code of the process.
int run();

}  // namespace egressclass::agent
