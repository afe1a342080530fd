// SPDX-License-Identifier: Apache-2.0
// egressd: what the datapath does, written down. The datapath never needs it.
#include <CLI/CLI.hpp>
#include <exception>
#include <string>

#include "agent/agent.h"
#include "util/version.h"

int main(int argc, char** argv) {
  try {
    CLI::App app{"Records which pod had which egress address, from when to when"};
    app.set_version_flag("--version", std::string("egressd ") + egressclass::kVersion);
    CLI11_PARSE(app, argc, argv);
    return egressclass::agent::run();
  } catch (const std::exception& e) {
    std::fprintf(stderr, "egressd: %s\n", e.what());
    return 1;
  }
}
